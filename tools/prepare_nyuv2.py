r"""Arrange NYU Depth v2 for training: rgb, depth, semseg and mask_valid.

    python tools/prepare_nyuv2.py --source nyu_depth_v2_labeled.mat --splits splits.mat \
        --class_mapping classMapping40.mat --out data/nyuv2

Writes OUT/{train,test}/MODALITY/all/NNNN.png, NNNN counting from 1 as in the labelled file:
  rgb         8-bit
  depth       16-bit, millimetres, holes filled by the authors
  semseg      8-bit, 0 = void, 1..40; only with --class_mapping
  mask_valid  8-bit, 255 where the sensor measured depth, else 0

Images keep their white border unless --crop_border is set. To resume an interrupted run, repeat the
command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.commands import run_command
from tools.common.target_folder import Target
from tools.prepare.nyuv2 import Nyuv2, prepare_nyuv2
from tools.prepare.prepare_command import finish, make_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = make_parser(__doc__, "nyu_depth_v2_labeled.mat")
    parser.add_argument(
        "--splits", type=Path, help="splits.mat (default: the one beside the labelled file)"
    )
    parser.add_argument(
        "--class_mapping", type=Path, help="classMapping40.mat, from 894 labels to 40 classes"
    )
    parser.add_argument(
        "--crop_border",
        action="store_true",
        help="keep rows 45..470 and columns 41..600 only (426 x 560)",
    )
    args = parser.parse_args(argv)
    splits = args.splits or args.source.with_name("splits.mat")
    job = Nyuv2(args.source, splits, args.class_mapping, args.crop_border)
    target = Target(args.out, args.overwrite)
    return finish(target, partial(prepare_nyuv2, job, target, args.workers))


if __name__ == "__main__":
    run_command(main)
