"""Draw a report as heat maps. Needs matplotlib (extra ``plots``)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tools.subset_report.scores import Matrix, Report, Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Blue: better than the constant baseline; white: equal to it; orange: worse.
_COLOURS = ((0.0, "#113f67"), (0.35, "#2d7096"), (0.7, "#8cbacc"), (1.0, "#f5f3ec"),
            (1.3, "#f4b878"), (1.6, "#de7c36"))  # fmt: skip
_WORST = _COLOURS[-1][0]
_NO_SCORE, _INK, _FADED = "#ecedf0", "#1c1e24", "#6a6e78"
_CELL_W, _CELL_H = 1.35, 0.5  # inches

Cell = tuple[float, str]
"""Level (0 best, 1 baseline, more is worse; nan: grey) and text of a heat-map cell."""


@dataclass(frozen=True)
class _Panel:
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[Cell]]


def report_figure(report: Report) -> Figure:
    """Draw every matrix, and the effect of removing one input, as heat maps.

    Losses are coloured by their ratio to the constant baseline's, other scores by their position
    between the best (0) and the worst (1) of their column.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = list(_panels(report))
    heights = [len(panel.rows) for panel in panels]
    width = 2.4 + _CELL_W * max(len(panel.columns) for panel in panels)
    height = 0.8 + sum(_CELL_H * rows + 1.1 for rows in heights)
    fig = Figure(figsize=(width, height), dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.12))
    axes = fig.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    image = [_draw(ax, panel) for ax, panel in zip(axes, panels, strict=True)][-1]
    bar = fig.colorbar(image, ax=axes, location="bottom", aspect=60, ticks=[0, 1, _WORST])
    bar.ax.set_xticklabels(["best", "constant baseline", "worse"], fontsize=9, color=_FADED)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    caption = f"{report.checkpoint}, {report.samples} samples of {report.data}"
    bar.set_label(caption, fontsize=9, color=_FADED)
    return fig


def _panels(report: Report) -> Iterator[_Panel]:
    for m in report.matrices:
        cells = [[_score_cell(m, c, scores[c]) for c in m.columns] for scores in m.rows.values()]
        yield _Panel(m.title, m.note, m.columns, [" + ".join(s) for s in m.rows], cells)
    if report.drops:
        last = report.matrices[-1]
        cells = [[_drop_cell(row[c]) for c in last.columns] for row in report.drops.values()]
        title, note = "Change when one input is removed", f"{last.title}, against all inputs"
        yield _Panel(title, note, last.columns, [f"without {n}" for n in report.drops], cells)


def _score_cell(m: Matrix, column: str, score: Score | None) -> Cell:
    if score is None:
        return math.nan, "input"
    text = f"{score.value:#.3g}".rstrip(".")
    if score.share is not None:
        return score.share, f"{text}  ({score.share:.0%})"
    values = [s.value for row in m.rows.values() if (s := row[column]) is not None]
    low, high = min(values), max(values)
    if math.isnan(low + high) or low == high:
        return (math.nan if math.isnan(score.value) else 0.5), text
    level = (score.value - low) / (high - low)
    return (level if column in m.falls else 1 - level), text


def _drop_cell(score: Score | None) -> Cell:
    if score is None or score.share is None or math.isnan(score.share):
        return math.nan, "-"
    return 1 + score.share, f"{score.share:+.0%}"


def _draw(ax: Axes, panel: _Panel) -> AxesImage:
    from matplotlib.colors import LinearSegmentedColormap

    stops = [(level / _WORST, colour) for level, colour in _COLOURS]
    cmap = LinearSegmentedColormap.from_list("loss", stops).with_extremes(bad=_NO_SCORE)
    levels = np.ma.masked_invalid([[level for level, _ in row] for row in panel.cells])
    image = ax.imshow(levels, cmap, vmin=0, vmax=_WORST, aspect="auto")
    for y, row in enumerate(panel.cells):
        for x, (level, text) in enumerate(row):
            ink = _FADED if math.isnan(level) else "white" if level < 0.55 else _INK
            ax.text(x, y, text, ha="center", va="center", color=ink, fontsize=10)
    ax.set_title(panel.title, loc="left", fontsize=13, color=_INK, pad=40)
    ax.annotate(panel.note, (0, 1), (0, 26), "axes fraction", "offset points",
                fontsize=9, color=_FADED)  # fmt: skip
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(panel.columns)), panel.columns, fontsize=11)
    ax.set_yticks(range(len(panel.rows)), panel.rows, fontsize=11)
    ax.set_xticks(np.arange(1, len(panel.columns)) - 0.5, minor=True)
    ax.set_yticks(np.arange(1, len(panel.rows)) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=3)
    ax.tick_params(which="both", length=0, colors=_INK)
    ax.spines[:].set_visible(False)
    return image
