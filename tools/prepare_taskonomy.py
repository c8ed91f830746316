r"""Arrange Taskonomy, such as its tiny subset, for training.

    python tools/prepare_taskonomy.py --source download --out data/taskonomy \
        --split_csv train_val_test_tiny.csv --tasks rgb depth_zbuffer normal

SOURCE holds BUILDING_TASK.tar archives, or the folders TASK/BUILDING, TASK/taskonomy/BUILDING or
BUILDING/TASK. Writes OUT/TASK/BUILDING/point_P_view_V_domain_TASK.png, and OUT/splits.json from the
official CSV (columns id, train, val, test), which training reads.

Every view must have a file of every task; --skip_incomplete skips the others. Files in folders
become hard links unless --link says otherwise, archives are unpacked. To resume an
interrupted run, repeat the command.
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
from tools.prepare.prepare_command import add_link, finish, make_parser
from tools.prepare.taskonomy_archives import Taskonomy, prepare_taskonomy


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = make_parser(__doc__, "folder of the download")
    parser.add_argument(
        "--split_csv", type=Path, required=True, help="official split, e.g. train_val_test_tiny.csv"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK", help="tasks (default: all found)"
    )
    parser.add_argument(
        "--skip_incomplete", action="store_true", help="skip views without a file of every task"
    )
    add_link(parser)
    args = parser.parse_args(argv)
    tasks = tuple(args.tasks)
    job = Taskonomy(args.source, args.split_csv, tasks, args.link, args.skip_incomplete)
    target = Target(args.out, args.overwrite)
    return finish(target, partial(prepare_taskonomy, job, target, args.workers))


if __name__ == "__main__":
    run_command(main)
