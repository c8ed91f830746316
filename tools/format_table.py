"""Write a file of every format, read it in every way, and print what comes back.

    python tools/format_table.py
    python tools/format_table.py --only TIFF --details
    python tools/format_table.py --markdown

Every file is read as colours (`rgb`), class ids (`labels`: semseg), 16-bit `depth`, and a `float`
modality with the channels of the file: by training from a plain folder and from a pack, and by
tools/check_dataset.py. "right": the values written (lossy formats: within a small tolerance, for
colours); "refused": an error that names the file. Any other outcome makes the exit code 1.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from tools.formats.format_samples import samples
from tools.formats.verdicts import COLUMNS, WAYS, Row, build_table

GOOD = ("right", "refused")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a cell is neither right nor refused."""
    parser = CommandParser(__doc__)
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--details", action="store_true", help="print the errors, too")
    parser.add_argument(
        "--markdown", action="store_true", help="print the table for docs/FORMATS.md"
    )
    args = parser.parse_args(argv)
    rows = [sample for sample in samples() if args.only in sample.name]
    with tempfile.TemporaryDirectory() as folder:
        table = build_table(rows, Path(folder))
    print(markdown(table) if args.markdown else plain(table))
    bad = False
    for name, row in table.items():
        for (column, way), cell in row.items():
            bad |= cell.verdict not in GOOD
            if cell.detail and (args.details or cell.verdict not in GOOD):
                print(f"{name}, {column}, {way}: {cell.verdict}: {cell.detail}", file=sys.stderr)
    return int(bad)


def plain(table: dict[str, Row]) -> str:
    """Format for a terminal, one word per cell."""
    lines = [" " * 36 + "".join(f"{column:<24}" for column in COLUMNS)]
    lines += [" " * 36 + "".join(f"{way:<8}" for _ in COLUMNS for way in WAYS)]
    for name, row in table.items():
        lines.append(
            f"{name:<36}" + "".join(f"{row[c, w].verdict:<8}" for c in COLUMNS for w in WAYS)
        )
    return "\n".join(lines)


def markdown(table: dict[str, Row]) -> str:
    """Format for the document: one word per column if all ways agree."""
    lines = ["| file | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, row in table.items():
        cells = []
        for column in COLUMNS:
            verdicts = [row[column, way].verdict for way in WAYS]
            cells.append(verdicts[0] if len(set(verdicts)) == 1 else " / ".join(verdicts))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
