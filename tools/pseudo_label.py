"""Make the depth and label images that pre-training reads, from RGB images alone.

    python tools/pseudo_label.py --data_path imagenet/train/rgb --out imagenet/train
    torchrun --nproc_per_node=8 tools/pseudo_label.py --data_path photos --out data/photos

Writes OUT/depth/SUB-FOLDER/NAME.png (16 bits) and OUT/semseg/SUB-FOLDER/NAME.png (class ids 0..132
of COCO panoptic), and links the images into OUT/rgb. Models are those of the transformers library,
by their name on the Hugging Face Hub or from a folder. Under torchrun each process takes its share.
The same command goes on where a stopped one was. ``--help`` lists all options; see SETUP.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.labelling.label_folder import Labelling, lone_world
from tools.labelling.options import LabelConfig
from utils.config.parse import parse_config
from utils.logs.errors import RunError, exit_on_user_error


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, label this process's share."""
    cfg = parse_config(LabelConfig, argv)
    world = lone_world(cfg.runtime)
    try:
        print(Labelling(cfg, world).run())
    except OSError as err:
        raise RunError(f"{err}; the same command goes on from here") from err
    except KeyboardInterrupt:
        raise RunError("stopped; the same command goes on from here") from None


if __name__ == "__main__":
    with exit_on_user_error():
        main()
