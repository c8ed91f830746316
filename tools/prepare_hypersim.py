r"""Arrange Hypersim for training: rgb, depth, semseg and mask_valid.

    python tools/prepare_hypersim.py --source hypersim --out data/hypersim \
        --split_csv metadata_images_split_scene_v1.csv --workers 8

SOURCE holds ai_VVV_NNN/images/scene_cam_XX_{final_preview,geometry_hdf5}/. Writes
OUT/{train,val,test}/MODALITY/SCENE/cam_XX_frame_IIII.{jpg,png}:
  rgb         the tone-mapped preview, unchanged
  depth       16-bit, millimetres along the optical axis, 0 = invalid
  semseg      8-bit, 0 = void, 1..40 (NYU40)
  mask_valid  8-bit, 255 where depth is finite and in 0.001..65.535 m, else 0

Frames without labels or depth are skipped and counted. Depth assumes the camera of the data set's
documentation (focal length 886.81 pixels at width 1024). To resume an interrupted run, repeat the
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
from tools.prepare.hypersim import Hypersim, prepare_hypersim
from tools.prepare.prepare_command import add_link, finish, make_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = make_parser(__doc__, "folder of the scenes' folders")
    parser.add_argument(
        "--split_csv", type=Path, required=True, help="metadata_images_split_scene_v1.csv"
    )
    parser.add_argument(
        "--skip_incomplete", action="store_true", help="skip frames with missing files"
    )
    add_link(parser)
    args = parser.parse_args(argv)
    job = Hypersim(args.source, args.split_csv, args.link, args.skip_incomplete)
    target = Target(args.out, args.overwrite)
    return finish(target, partial(prepare_hypersim, job, target, args.workers))


if __name__ == "__main__":
    run_command(main)
