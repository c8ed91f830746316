"""Plot the ``log.jsonl`` of one or several runs: losses, learning rate, validation.

    python tools/plot_run.py output/demo
    python tools/plot_run.py output/run_a output/run_b --out compare.png

Validation losses are divided by the constant baseline's: below 1 the model has learned something.
Several runs share the axes, one line style each. Needs matplotlib: ``pip install
'multimae[plots]'``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError
from tools.report.curves import plot_runs
from tools.report.run_log import read_log


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = CommandParser("Plot the log.jsonl of one or several runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="OUTPUT_DIR", help="folder of a run")
    parser.add_argument(
        "--out", type=Path, help="output file (default: loss.png in the first OUTPUT_DIR)"
    )
    args = parser.parse_args(argv)
    distinct = len({run.name for run in args.runs}) == len(args.runs)
    runs = {run.name if distinct else str(run): read_log(run) for run in args.runs}
    first = args.runs[0]
    out = args.out or (first if first.is_dir() else first.parent) / "loss.png"
    try:
        fig = plot_runs(runs)
    except ModuleNotFoundError as err:
        raise UserError("plots need matplotlib: pip install 'multimae[plots]'") from err
    try:
        fig.savefig(out)
    except (OSError, ValueError) as err:
        raise UserError(f"--out {out}: cannot be written: {err}") from err
    print(out)


if __name__ == "__main__":
    run_command(main)
