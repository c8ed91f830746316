"""Show what a pre-training run reached: a table of masked losses, and its last picture.

    python tools/show_run.py output/demo

Reads ``log.jsonl``; copies the last reconstructions to ``OUTPUT_DIR/reconstructions.png``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.report.curves import Row
from tools.report.run_log import read_log
from utils.logs.errors import UserError
from utils.logs.paths import RunPaths

PICTURE = "reconstructions.png"


def last_evaluation(output_dir: Path) -> Row:
    """The last evaluation row of a run.

    Raises:
        UserError: There is no readable log, or no evaluation in it.
    """
    found = [row for row in read_log(output_dir) if row.get("kind") == "eval"]
    if not found:
        raise UserError(f"{output_dir} has no evaluation: train with --eval_data_path")
    return found[-1]


def table(row: Row) -> str:
    """Masked validation losses beside the trivial predictor's."""
    names = [key.partition("/")[2] for key in row if key.startswith("eval/")]
    lines = [
        f"{'modality':<12}{'masked loss':>12}{'trivial':>10}{'below trivial':>15}",
        *(
            f"{n:<12}{row[f'eval/{n}']:>12.4f}{row[f'trivial/{n}']:>10.4f}"
            f"{100 * row[f'gain/{n}']:>13.1f} %"
            for n in names
        ),
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and copy the picture; 2 if there is nothing to show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", type=Path, help="folder of a run")
    output_dir: Path = parser.parse_args(argv).output_dir
    try:
        row = last_evaluation(output_dir)
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    print(f"\nValidation after {row['epoch']:g} epochs ({row['step']} steps)\n\n{table(row)}\n")
    print("trivial: one constant per channel, or the class frequencies, of the training set")
    paths = RunPaths(output_dir)
    pictures = sorted(paths.pictures.glob("reconstructions-*.png"))
    if pictures:
        shutil.copyfile(pictures[-1], output_dir / PICTURE)
        print(f"pictures: {output_dir / PICTURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
