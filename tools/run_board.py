"""Write one HTML page of many runs: scores, curves, last pictures, options and their differences.

    python tools/run_board.py output/run_a output/run_b --out board.html
    python tools/run_board.py output --out board.html          # all runs below output

The page needs no server and loads nothing: send it as a file. Runs can be filtered by name and
options, hidden, and sorted by any score.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError, coloured
from tools.report.board import BoardRun, render_board
from tools.report.run_log import read_log
from utils.logs.paths import RunPaths


def find_runs(folders: Sequence[Path]) -> list[BoardRun]:
    """Read the runs in or below folders; print a warning for those that cannot be read.

    Raises:
        UserError: There is none.
    """
    found = list(dict.fromkeys(run for folder in folders for run in _runs_in(folder)))
    common = Path(os.path.commonpath([path.resolve().parent for path in found] or [Path("/")]))
    runs = []
    for path in found:
        try:
            rows = read_log(path)
        except UserError as err:
            print(coloured("warning:", "yellow", sys.stderr), err, file=sys.stderr)
            continue
        name = path.resolve().relative_to(common).as_posix()
        runs.append(BoardRun(name, RunPaths(path), rows))
    if not runs:
        raise UserError(f"no log.jsonl with rows in {', '.join(map(str, folders))}")
    return runs


def _runs_in(folder: Path) -> Iterator[Path]:
    """The folder itself if it is a run, else those below; not the earlier runs of a folder."""
    if RunPaths(folder).log.is_file():
        yield folder
        return
    for log in sorted(folder.rglob(RunPaths(folder).log.name)):
        if not any(part.startswith("previous-") for part in log.relative_to(folder).parts):
            yield log.parent


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = CommandParser(__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="OUT_DIR", help="output folder of runs"
    )
    parser.add_argument("--out", type=Path, default=Path("board.html"), help="page to write")
    parser.add_argument("--title", default="Runs", help="title of the page")
    args = parser.parse_args(argv)
    runs = find_runs(args.runs)
    page = render_board(runs, args.title)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page, encoding="utf-8")
    except OSError as err:
        raise UserError(f"--out {args.out}: cannot be written: {err}") from err
    print(f"{args.out}: {len(runs)} runs, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(main)
