"""Make the Rooms data set: furnished rooms rendered on the CPU with aligned modalities.

Layout "multimae" (DIR/{train,val}/MODALITY/ROOM_TYPE/NAME):
  rgb         JPEG, sRGB
  depth       16-bit PNG, planar depth along the optical axis in millimetres
  semseg      8-bit PNG, NYU40 class ids 1..40, 0 = void; names in classes.json
  normals     RGB PNG, n * 0.5 + 0.5 in the camera frame: x right, y up, z to the viewer
  mask_valid  8-bit PNG, 255 = depth valid; 0 where a window pane shows the outdoors

Layout "taskonomy" (DIR/TASK/BUILDING/point_P_view_V_domain_TASK.png): depth in 1/512 m with
65535 = invalid; train and val are different buildings, listed in splits.json.

The files depend on the seed but not on the number of workers. To resume an interrupted run, repeat
the command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    from multimae.specs.arguments import CommandParser

    parser = CommandParser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="data set folder")
    group = parser.add_argument_group("rooms")
    group.add_argument("--train", type=int, default=1000, help="training samples")
    group.add_argument("--val", type=int, default=100, help="validation samples")
    group.add_argument("--size", type=int, default=256, help="width and height, pixels")
    group.add_argument("--seed", type=int, default=0, help="seed of the data set")
    group.add_argument("--workers", type=int, default=1, help="processes")
    group.add_argument(
        "--furniture", type=Path, nargs="+", default=[], help="Sweet Home 3D archives (.sh3f)"
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--layout", choices=("multimae", "taskonomy"), default="multimae", help="see above"
    )
    args = parser.parse_args(argv)
    if args.train < 0 or args.val < 0 or args.seed < 0:
        parser.error("--train, --val and --seed must not be negative")
    if not 16 <= args.size <= 4096:
        parser.error("--size must be between 16 and 4096")
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the tool.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        0 on success, 1 when a file cannot be written or no view was found, 2 for bad settings,
        an unreadable archive or a missing ray tracer, 130 when interrupted.
    """
    args = parse(argv)
    from tools.rooms.furniture.sh3f import Sh3fError
    from tools.rooms.generate import Job, make_rooms
    from tools.rooms.rendering.tracer import TracerMissingError
    from tools.rooms.sample import RenderError
    from tools.rooms.sample_files import SettingsError

    job = Job(
        args.out,
        args.train,
        args.val,
        args.size,
        args.seed,
        args.workers,
        tuple(args.furniture),
        args.layout,
    )
    try:
        made = make_rooms(job)
    except (SettingsError, Sh3fError, TracerMissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RenderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    print(f"{made} samples rendered, {args.train + args.val - made} already present: {args.out}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from multimae.specs.commands import run_command

    run_command(main)
