"""Print the evaluations of a run, where its files are, and the next command.

    python tools/show_run.py output/demo

Reads ``log.jsonl``. A star marks the best value of every metric. Copies the last picture of a
pre-training run to ``OUTPUT_DIR/reconstructions.png``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.images.folders import spread_indices
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError, coloured, print_error
from tools.report.run_log import Row, evaluations, read_log
from utils.logs.known_metrics import Metric, goal_of, metrics_of, value_of
from utils.logs.paths import RunPaths
from utils.logs.score_tables import BEST, aligned, columns_of, numerals, part_lines, with_unit
from utils.logs.summary import file_lines

PICTURE = "reconstructions.png"
MAX_ROWS = 20


def report(output_dir: Path, log: Sequence[Row]) -> Iterator[str]:
    """Describe the evaluations of a run.

    Raises:
        UserError: The log has no evaluation.
    """
    rows, tests = evaluations(log)
    if not rows and not tests:
        raise UserError(f"{output_dir} has no evaluation: train with --eval_data_path")
    metrics = metrics_of(key for row in rows for key in row)
    goal = goal_of(metrics)
    best = goal.best([value_of(row, goal) for row in rows]) if goal else None
    count = "1 evaluation" if len(rows) == 1 else f"{len(rows)} evaluations"
    yield f"{output_dir}: {count}"
    if goal is not None and best is not None:
        score = with_unit(value_of(rows[best], goal), goal)
        yield f"best {goal.title}: {score} after epoch {rows[best]['epoch']:.4g}"
    if rows:
        shown = sorted({*spread_indices(len(rows), MAX_ROWS), *([] if best is None else [best])})
        some = "" if len(shown) == len(rows) else f" ({len(shown)} of {len(rows)})"
        yield f"\nscores{some}" + (f", best marked {BEST}" if len(rows) > 1 else "")
        yield from _history(rows, shown, [m for m in metrics if not m.part], goal)
        yield from _parts(rows, shown, metrics)
    for test in tests[-1:]:
        found = metrics_of(test)
        yield f"\ntest after epoch {test['epoch']:.4g}"
        yield from aligned(columns_of([test], [m for m in found if not m.part], set()))
        yield from part_lines(test, found)


def _history(
    rows: Sequence[Row], shown: Sequence[int], metrics: Sequence[Metric], goal: Metric | None
) -> Iterator[str]:
    """Table of scores with a line per evaluation; the best of every column has a star."""
    several = metrics if len(rows) > 1 else ()
    best = {m.key: m.best([value_of(row, m) for row in rows]) for m in several}
    marks = {(shown.index(i), key) for key, i in best.items() if i in shown}
    chosen = [rows[i] for i in shown]
    table = aligned([*_when(chosen), *columns_of(chosen, metrics, marks)])
    green = shown.index(best[goal.key]) if goal is not None and best.get(goal.key) in shown else -1
    for number, line in enumerate(table, start=-1):
        yield coloured(line, "green", sys.stdout) if number == green >= 0 else line


def _parts(rows: Sequence[Row], shown: Sequence[int], metrics: Sequence[Metric]) -> Iterator[str]:
    """Tables by modality or task: of the last evaluation, and of the gains over time."""
    last = rows[-1]
    if any(m.part for m in metrics):
        yield f"\nafter epoch {last['epoch']:.4g}"
        yield from part_lines(last, metrics)
    gains = [m for m in metrics if m.part and m.key.startswith("gain/")]
    if gains and len(shown) > 1:
        chosen = [rows[i] for i in shown]
        yield f"\n{gains[0].heading}"
        columns = ([m.part, *numerals([value_of(r, m) for r in chosen])] for m in gains)
        yield from aligned([*_when(chosen), *columns])


def _when(rows: Sequence[Row]) -> list[list[str]]:
    """Columns of epoch and step."""
    return [
        ["epoch", *(f"{row['epoch']:.4g}" for row in rows)],
        ["step", *(f"{row['step']:,}" for row in rows)],
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Exit code 2 without a readable evaluation."""
    parser = CommandParser(__doc__)
    parser.add_argument("output_dir", type=Path, help="output folder of a run")
    output_dir: Path = parser.parse_args(argv).output_dir
    try:
        log = read_log(output_dir)
        lines = list(report(output_dir, log))
    except UserError as err:
        print_error(err)
        return err.exit_code
    print("\n".join(lines), end="\n\n")
    paths = RunPaths(output_dir)
    reconstructions = sorted(paths.pictures.glob("reconstructions-*.png"))
    if reconstructions:
        shutil.copyfile(reconstructions[-1], output_dir / PICTURE)
        print(f"last picture: {output_dir / PICTURE}")
    for line in file_lines(paths, pretrained=any("gain" in row for row in log)):
        print(line)
    return 0


if __name__ == "__main__":
    run_command(main)
