"""Fine-tune a MultiMAE for image classification.

    python run_finetuning_cls.py --config cfgs/finetune/rooms/cls.yaml
    torchrun --nproc_per_node=8 run_finetuning_cls.py --config cfgs/finetune/cls/....yaml

Every option is a flag and a YAML key: ``--help`` lists them, ``--print_config`` shows the result
of both. See FINETUNING.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.config.cls_options import ClsConfig
from utils.config.parse import parse_config
from utils.distributed.script import run_script
from utils.distributed.world import init_world, shutdown
from utils.tasks.classification import ClassificationFinetuning
from utils.tasks.finetuning import finetune


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, join the other processes, fine-tune."""
    cfg = parse_config(ClsConfig, argv)
    world = init_world(cfg.runtime)
    finetune(ClassificationFinetuning(cfg, world))
    shutdown()


if __name__ == "__main__":
    run_script(main)
