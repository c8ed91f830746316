"""Evaluations as aligned text; late imports: a step does not need it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from utils.logs.known_metrics import Metric, metrics_of, value_of

if TYPE_CHECKING:
    from utils.training.state import Goal

BEST = "*"
Cells = list[list[str]]


def evaluation_lines(
    epoch: float, step: int, values: Mapping[str, float], goal: Goal | None, best: float | None
) -> Iterator[str]:
    """Describe one evaluation: a title, a table of the metrics, one of the parts.

    Args:
        epoch: Epochs trained.
        step: Steps trained.
        values: Metrics by name.
        goal: What selects the best checkpoint; ``None`` if nothing does.
        best: Best value of the goal before.
    """
    metrics = metrics_of(values)
    mine = next((m for m in metrics if goal is not None and m.key == goal.metric), None)
    marks: set[tuple[int, str]] = set()
    state = ""
    if goal is not None and mine is not None and goal.better(values[mine.key], best):
        marks, state = {(0, mine.key)}, f": best {mine.title} so far"
    elif mine is not None and best is not None:
        state = f": best {mine.title} so far is {with_unit(best * mine.scale, mine)}"
    yield f"evaluation after step {step} (epoch {epoch:.2f}){state}"
    overall = [m for m in metrics if not m.part]
    yield from aligned(columns_of([values], overall, marks))
    yield from part_lines(values, metrics)


def part_lines(values: Mapping[str, Any], metrics: Sequence[Metric]) -> Iterator[str]:
    """Table of an evaluation with a line per modality, task or label."""
    titles = list(dict.fromkeys(m.heading for m in metrics if m.part))
    parts = list(dict.fromkeys(m.part for m in metrics if m.part))
    cells = {(m.part, m.heading): m for m in metrics if m.part}
    columns: Cells = [["", *parts]]
    for title in titles:
        found = [cells.get((part, title)) for part in parts]
        numbers = [math.nan if m is None else value_of(values, m) for m in found]
        columns.append([title, *_texts(numbers, next(m for m in found if m))])
    yield from aligned(columns if titles else [])


def columns_of(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[Metric], marks: set[tuple[int, str]]
) -> Cells:
    """A column of text per metric; the cells of ``marks``, (row, key), end in a star."""
    columns = []
    for metric in metrics:
        texts = _texts([value_of(row, metric) for row in rows], metric)
        starred = any(key == metric.key for _, key in marks)
        ends = [BEST if (i, metric.key) in marks else " " * starred for i in range(len(rows))]
        cells = [text + end for text, end in zip(texts, ends, strict=True)]
        columns.append([metric.heading + " " * starred, *cells])
    return columns


def aligned(columns: Cells) -> Iterator[str]:
    """Lines of a table, right-aligned; left-aligned where a heading is empty."""
    widths = [max(map(len, column)) for column in columns]
    for line in zip(*columns, strict=True):
        cells = zip(line, widths, columns, strict=True)
        padded = (text.rjust(n) if column[0] else text.ljust(n) for text, n, column in cells)
        yield ("  " + "  ".join(padded)).rstrip()


def numerals(values: Sequence[float]) -> list[str]:
    """Numbers with equal decimals, four or more digits of the largest; a dash for NaN and Inf."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    magnitude = math.floor(math.log10(largest)) if largest else 0
    decimals = min(3 - magnitude, 7) if magnitude < -1 else 4 if magnitude < 1 else 2
    return [f"{v:,.{decimals}f}" if math.isfinite(v) else "-" for v in values]


def with_unit(value: float, metric: Metric) -> str:
    """A displayed value as in the tables, with its unit."""
    text = _texts([value], metric)[0]
    return f"{text} {metric.unit}" if metric.unit else text


def _texts(values: Sequence[float], metric: Metric) -> list[str]:
    if metric.unit != "%":
        return numerals(values)
    return [f"{v:.2f}" if math.isfinite(v) else "-" for v in values]
