"""Fine-tune a MultiMAE for depth estimation.

    python run_finetuning_depth.py --config cfgs/finetune/rooms/depth.yaml
    torchrun --nproc_per_node=8 run_finetuning_depth.py --config cfgs/finetune/depth/....yaml

Every option is a flag and a YAML key: ``--help`` lists them, ``--print_config`` shows the result
of both. See FINETUNING.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.config.depth_options import DepthConfig
from utils.config.parse import parse_config
from utils.distributed.script import run_script
from utils.distributed.world import init_world, shutdown
from utils.tasks.depth_estimation import DepthFinetuning
from utils.tasks.finetuning import finetune


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, join the other processes, fine-tune."""
    cfg = parse_config(DepthConfig, argv)
    world = init_world(cfg.runtime)
    finetune(DepthFinetuning(cfg, world))
    shutdown()


if __name__ == "__main__":
    run_script(main)
