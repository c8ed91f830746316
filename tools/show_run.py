"""Print the last validation losses of a pre-training run and save its last reconstructions.

    python tools/show_run.py output/demo

Reads ``log.jsonl``; copies the last picture to ``OUTPUT_DIR/reconstructions.png``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.errors import UserError, run_command
from tools.report.run_log import Row, read_log
from utils.logs.paths import RunPaths

PICTURE = "reconstructions.png"


def last_evaluation(output_dir: Path) -> Row:
    """Find the last evaluation in a run's log.

    Raises:
        UserError: The log is unreadable or has no evaluation.
    """
    rows = [row for row in read_log(output_dir) if row.get("kind") == "eval"]
    if not rows:
        raise UserError(f"{output_dir} has no evaluation: train with --eval_data_path")
    return rows[-1]


def table(row: Row) -> str:
    """Format masked validation losses and the constant baseline's."""
    names = [key.partition("/")[2] for key in row if key.startswith("eval/")]
    lines = [
        f"{'modality':<12}{'masked loss':>12}{'baseline':>10}{'improvement':>15}",
        *(
            f"{n:<12}{row[f'eval/{n}']:>12.4f}{row[f'trivial/{n}']:>10.4f}"
            f"{100 * row[f'gain/{n}']:>13.1f} %"
            for n in names
        ),
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Exit code 2 without a readable evaluation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", type=Path, help="output folder of a run")
    output_dir: Path = parser.parse_args(argv).output_dir
    try:
        row = last_evaluation(output_dir)
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    print(f"\nValidation after {row['epoch']:g} epochs ({row['step']} steps)\n\n{table(row)}\n")
    print("baseline: per-channel constants or class frequencies of the training set")
    pictures = sorted(RunPaths(output_dir).pictures.glob("reconstructions-*.png"))
    if pictures:
        shutil.copyfile(pictures[-1], output_dir / PICTURE)
        print(f"pictures: {output_dir / PICTURE}")
    return 0


if __name__ == "__main__":
    run_command(main)
