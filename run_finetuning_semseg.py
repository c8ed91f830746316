"""Fine-tune a MultiMAE for semantic segmentation.

    python run_finetuning_semseg.py --config cfgs/finetune/rooms/semseg.yaml
    torchrun --nproc_per_node=8 run_finetuning_semseg.py --config cfgs/finetune/semseg/....yaml

Every option is a flag and a YAML key: ``--help`` lists them, ``--print_config`` shows the result
of both. See FINETUNING.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.config.parse import parse_config
from utils.config.semseg_options import SemsegConfig
from utils.distributed.script import run_script
from utils.distributed.world import init_world, shutdown
from utils.tasks.finetuning import finetune
from utils.tasks.segmentation import SegmentationFinetuning


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, join the other processes, fine-tune."""
    cfg = parse_config(SemsegConfig, argv)
    world = init_world(cfg.runtime)
    finetune(SegmentationFinetuning(cfg, world))
    shutdown()


if __name__ == "__main__":
    run_script(main)
