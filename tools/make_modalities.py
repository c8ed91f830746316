"""Add edges, six spectral bands and temperatures to a folder of rooms.

    python tools/make_rooms.py --out data/rooms --train 1200 --val 200 --size 160 --workers 2
    python tools/make_modalities.py data/rooms --add edges multispectral thermal

They are computed from the photos, depth and labels and stored in typical formats: 8-bit PNG, 16-bit
.npy with six channels, float TIFF with NaN for missing values. cfgs/pretrain/rooms has a config for
each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from tools.rooms.derived_modalities import DERIVED, derive


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = CommandParser(__doc__)
    parser.add_argument("rooms", type=Path, help="folder made by tools/make_rooms.py")
    parser.add_argument(
        "--add", nargs="+", choices=DERIVED, default=list(DERIVED), help="modalities to add (all)"
    )
    args = parser.parse_args(argv)
    count = derive(args.rooms, args.add)
    print(f"{args.rooms}: {', '.join(args.add)} of {count} rooms")


if __name__ == "__main__":
    run_command(main)
