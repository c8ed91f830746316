"""Scores of a model by the subset of its inputs, as numbers, text table and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import Tensor

Subset = tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """A score, averaged over samples.

    Attributes:
        value: The mean; nan without valid samples.
        error: Its standard error; nan for scores pooled over the dataset.
        share: Losses only: ``value`` divided by the constant baseline's.
    """

    value: float
    error: float = math.nan
    share: float | None = None


@dataclass(frozen=True)
class Matrix:
    """Scores of every subset of the inputs.

    Attributes:
        key: Name in the JSON.
        title: The quantity measured.
        note: How it is measured.
        columns: Names of the scores.
        rows: Subset -> column -> score; ``None`` where nothing is scored.
        falls: Columns where lower is better.
    """

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: Mapping[Subset, Mapping[str, Score | None]]
    falls: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Report:
    """Scores of a checkpoint on a dataset.

    Attributes:
        checkpoint: File of the model.
        data: Data folder.
        samples: Number of samples.
        inputs: The model's inputs, in order.
        matrices: The scores.
        drops: Removed input -> column -> how much worse the last matrix's score is than with all
            inputs (absolute; relative as ``share``).
    """

    checkpoint: str
    data: str
    samples: int
    inputs: tuple[str, ...]
    matrices: tuple[Matrix, ...]
    drops: Mapping[str, Mapping[str, Score | None]]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; subsets are keyed as ``rgb-depth``."""
        return {
            "checkpoint": self.checkpoint,
            "data": self.data,
            "samples": self.samples,
            "inputs": list(self.inputs),
            **{
                m.key: {
                    "title": m.title,
                    "note": m.note,
                    "scores": {"-".join(s): _plain(row) for s, row in m.rows.items()},
                }
                for m in self.matrices
            },
            "drop": {name: _plain(row) for name, row in self.drops.items()},
        }

    def table(self) -> str:
        """Format the report for a terminal."""
        parts = [f"{self.checkpoint} on {self.samples} samples of {self.data}"]
        if any(_has_share(m) for m in self.matrices):
            parts.append("in brackets: loss relative to the constant baseline of this dataset")
        for m in self.matrices:
            lines = {" + ".join(s): m.rows[s] for s in m.rows}
            parts.append(_block(f"{m.title} ({m.note})", "inputs", m.columns, lines, _cell))
        if self.drops:
            last = self.matrices[-1]
            title = f"Change when one input is removed ({last.title})"
            parts.append(_block(title, "removed", last.columns, self.drops, _drop_cell))
        return "\n\n".join(parts)


def subsets(names: Sequence[str]) -> list[Subset]:
    """List the non-empty subsets by size, in the order of ``names``."""
    return [c for size in range(1, len(names) + 1) for c in combinations(names, size)]


def mean_score(values: Tensor, baseline: float | None = None) -> Score:
    """Mean and standard error of per-sample values, ignoring nan."""
    valid = values[~values.isnan()].double()
    if not len(valid):
        return Score(math.nan)
    mean = valid.mean().item()
    error = valid.std().item() / math.sqrt(len(valid)) if len(valid) > 1 else math.nan
    return Score(mean, error, mean / baseline if baseline else None)


def drops(matrix: Matrix, inputs: Subset) -> dict[str, dict[str, Score | None]]:
    """How much worse each score is without one of the inputs; positive is worse."""
    if len(inputs) < 2:
        return {}
    full = matrix.rows[inputs]
    out: dict[str, dict[str, Score | None]] = {}
    for removed in inputs:
        rest = matrix.rows[tuple(n for n in inputs if n != removed)]
        out[removed] = {}
        for column in matrix.columns:
            a, b = full[column], rest[column]
            if a is None or b is None:
                out[removed][column] = None
                continue
            worse = (b.value - a.value) * (1 if column in matrix.falls else -1)
            out[removed][column] = Score(worse, share=worse / a.value if a.value else math.nan)
    return out


def _has_share(matrix: Matrix) -> bool:
    scores = (score for row in matrix.rows.values() for score in row.values())
    return any(score is not None and score.share is not None for score in scores)


def _plain(row: Mapping[str, Score | None]) -> dict[str, Any]:
    return {column: None if s is None else _numbers(s) for column, s in row.items()}


def _numbers(score: Score) -> dict[str, float]:
    fields = {"value": score.value, "standard_error": score.error, "share": score.share}
    return {k: v for k, v in fields.items() if v is not None and math.isfinite(v)}


def _block(
    title: str,
    corner: str,
    columns: Sequence[str],
    rows: Mapping[str, Mapping[str, Score | None]],
    write: Any,
) -> str:
    side = max(len(corner), *(len(name) for name in rows)) + 2
    cells = {name: [write(row[c]) for c in columns] for name, row in rows.items()}
    widths = [
        max(len(c), *(len(cells[name][i]) for name in rows)) + 2 for i, c in enumerate(columns)
    ]
    head = f"{corner:<{side}}" + "".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))
    body = [
        f"{name:<{side}}" + "".join(f"{t:>{w}}" for t, w in zip(cells[name], widths, strict=True))
        for name in rows
    ]
    return "\n".join([title, head, *body])


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    share = "" if score.share is None else f" ({score.share:.0%})"
    return f"{score.value:.4g}{share}"


def _drop_cell(score: Score | None) -> str:
    if score is None or score.share is None:
        return "-"
    return f"{score.value:+.3g} ({score.share:+.0%})"
