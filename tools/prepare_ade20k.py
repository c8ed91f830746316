"""Arrange ADE20K (ADEChallengeData2016, 150 classes) for training: rgb and semseg.

    python tools/prepare_ade20k.py --source ADEChallengeData2016 --out data/ade20k

Writes OUT/{train,val}/{rgb,semseg}/all/ADE_{train,val}_NNNNNNNN.{jpg,png}; ids are kept
(0 = void, 1..150). Every label map is read and checked. Files are hard links unless --link says
otherwise. To resume an interrupted run, repeat the command.
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
from tools.prepare.ade20k import prepare_ade20k
from tools.prepare.prepare_command import add_link, finish, make_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = make_parser(__doc__, "the folder ADEChallengeData2016")
    add_link(parser)
    args = parser.parse_args(argv)
    target = Target(args.out, args.overwrite)
    return finish(target, partial(prepare_ade20k, args.source, target, args.link, args.workers))


if __name__ == "__main__":
    run_command(main)
