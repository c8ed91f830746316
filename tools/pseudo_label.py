"""Predict depth and label images for pre-training from RGB images.

    python tools/pseudo_label.py --data_path imagenet/train/rgb --out imagenet/train
    torchrun --nproc_per_node=8 tools/pseudo_label.py --data_path photos --out data/photos

Writes OUT/depth/SUB-FOLDER/NAME.png (16 bits) and OUT/semseg/SUB-FOLDER/NAME.png (class ids 0..132
of COCO panoptic), and links the images into OUT/rgb. Models are those of the transformers
library, by name on the Hugging Face Hub or from a folder. Under torchrun the processes split the
images. To resume an interrupted run, repeat the command. ``--help`` lists all options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.commands import run_command
from multimae.specs.errors import RunError
from tools.labelling.label_folder import FolderLabeller, independent_world
from tools.labelling.options import LabelConfig
from utils.config.parse import parse_config


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the configuration and label the images of this process."""
    cfg = parse_config(LabelConfig, argv)
    world = independent_world(cfg.runtime)
    try:
        print(FolderLabeller(cfg, world).run())
    except OSError as err:
        raise RunError(f"{err}; run the same command again to resume") from err
    except KeyboardInterrupt:
        raise RunError("interrupted; run the same command again to resume") from None


if __name__ == "__main__":
    run_command(main)
