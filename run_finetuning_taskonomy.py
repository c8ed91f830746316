"""Fine-tune a MultiMAE for Taskonomy's dense tasks.

    python run_finetuning_taskonomy.py --config cfgs/finetune/rooms/taskonomy.yaml
    torchrun --nproc_per_node=8 run_finetuning_taskonomy.py --config cfgs/finetune/....yaml

Every option is a flag and a YAML key: ``--help`` lists them, ``--print_config`` shows the result
of both. See FINETUNING.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.config.parse import parse_config
from utils.config.taskonomy_options import TaskonomyConfig
from utils.distributed.script import run_script
from utils.distributed.world import init_world, shutdown
from utils.tasks.finetuning import finetune
from utils.tasks.taskonomy import TaskonomyFinetuning


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, join the other processes, fine-tune."""
    cfg = parse_config(TaskonomyConfig, argv)
    world = init_world(cfg.runtime)
    finetune(TaskonomyFinetuning(cfg, world))
    shutdown()


if __name__ == "__main__":
    run_script(main)
