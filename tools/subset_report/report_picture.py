"""A report as heat maps."""

from __future__ import annotations

import math

from PIL import Image

from tools.report.heatmap import Cell, HeatMap, heat_maps
from tools.subset_report.scores import Matrix, Report, Score


def report_picture(report: Report) -> Image.Image:
    """Every matrix, and what is lost when one input is missing.

    Losses are coloured by their share of the trivial predictor's, other scores by their place
    between the best and the worst of their column.
    """
    maps = [_heat_map(m, report.inputs) for m in report.matrices]
    if report.drops:
        maps.append(_drop_map(report))
    caption = f"{report.checkpoint}, {report.samples} samples of {report.data}"
    return heat_maps(maps, report.inputs, caption)


def _heat_map(m: Matrix, inputs: tuple[str, ...]) -> HeatMap:
    rows = tuple(tuple(name in subset for name in inputs) for subset in m.rows)
    cells = tuple(tuple(_cell(m, c, row[c]) for c in m.columns) for row in m.rows.values())
    return HeatMap(m.title, m.note.replace("; ", "\n"), m.columns, rows, cells)


def _cell(m: Matrix, column: str, score: Score | None) -> Cell:
    if score is None:
        return Cell(math.nan, "given")
    text = f"{score.value:#.3g}".rstrip(".")
    if score.share is not None:
        return Cell(score.share, text, f"{score.share:.0%} of trivial")
    values = [s.value for row in m.rows.values() if (s := row[column]) is not None]
    low, high = min(values), max(values)
    if math.isnan(low + high) or low == high:
        return Cell(math.nan if math.isnan(score.value) else 0.5, text)
    place = (score.value - low) / (high - low)
    return Cell(place if column in m.falls else 1 - place, text)


def _drop_map(report: Report) -> HeatMap:
    m = report.matrices[-1]
    rows = tuple(tuple(name != missing for name in report.inputs) for missing in report.drops)
    cells = tuple(tuple(_drop_cell(row[c]) for c in m.columns) for row in report.drops.values())
    title = f"Worse than with all inputs, when one is missing: {m.title[0].lower()}{m.title[1:]}"
    return HeatMap(title, "pale: no difference", m.columns, rows, cells)


def _drop_cell(score: Score | None) -> Cell:
    if score is None or score.share is None or math.isnan(score.share):
        return Cell(math.nan, "-")
    return Cell(1 + score.share, f"{score.share:+.0%}", f"{score.value:+#.2g}".rstrip("."))
