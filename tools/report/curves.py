"""Training curves from the rows of ``log.jsonl``. Needs ``pip install matplotlib``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

LINE_STYLES = ("-", "--", ":", "-.")
TOTAL_COLOUR = "#22252b"


def curve(rows: Iterable[Row], kind: str, key: str, over: str = "step") -> Curve:
    """``over`` (step, epoch) and ``key`` in the rows of one kind with a finite number for it."""
    points = {
        float(row[over]): float(row[key])
        for row in rows
        if row.get("kind") == kind and isinstance(row.get(key), (int, float))
    }
    points = {at: value for at, value in points.items() if math.isfinite(value)}
    places = np.array(sorted(points), dtype=np.float64)
    return places, np.array([points[at] for at in places.tolist()], dtype=np.float64)


def names_after(rows: Iterable[Row], prefix: str) -> list[str]:
    """What follows ``prefix/`` in the rows' keys, in order of appearance."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(f"{prefix}/"))
    return [key.removeprefix(f"{prefix}/") for key in keys]


def smooth(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Moving average over up to ``window`` neighbours, narrower towards the ends."""
    half = min(window, len(values)) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, len(values) - 1 - index), half)
    means: npt.NDArray[np.float64] = (sums[index + reach + 1] - sums[index - reach]) / (
        2 * reach + 1
    )
    return means


def figure(runs: dict[str, list[Row]]) -> Figure:
    """Draw everything: total and per-task loss, validation, learning rate.

    Args:
        runs: Rows by run name.
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=(13, 7.6), dpi=120, layout="constrained")
    (total, tasks), (evaluation, rate) = fig.subplots(2, 2)
    all_rows = [row for rows in runs.values() for row in rows]
    tab = cycle(f"C{i}" for i in range(10))
    names = dict.fromkeys(names_after(all_rows, "loss") + names_after(all_rows, "eval"))
    colours = {name: next(tab) for name in names}
    several = len(runs) > 1
    for (run, rows), style in zip(runs.items(), cycle(LINE_STYLES), strict=False):
        suffix = f" · {run}" if several else ""
        _draw_training(total, curve(rows, "train", "loss"), run, TOTAL_COLOUR, style)
        for name in names_after(rows, "loss"):
            loss = curve(rows, "train", f"loss/{name}")
            _draw_training(tasks, loss, name + suffix, colours[name], style)
        for name in names_after(rows, "eval"):
            _draw_ratio(evaluation, rows, name, suffix, colours[name], style)
        rate.plot(*curve(rows, "train", "lr"), style, color=TOTAL_COLOUR, label=run)
    evaluation.axhline(1.0, color="#9a9ea8", linewidth=1.0, zorder=0)
    evaluation.annotate(
        "trivial predictor",
        (1.0, 1.0),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color="#6a6e78",
        fontsize=8,
    )
    evaluation.set_ylim(bottom=0.0)
    titles = {
        total: "training loss",
        tasks: "training loss by task",
        evaluation: "validation loss / trivial predictor's",
        rate: "learning rate",
    }
    for axes, title in titles.items():
        if several or axes in (tasks, evaluation):
            _add_legend(axes, beside=several)
        _finish(axes, title)
    return fig


def _draw_training(axes: Axes, loss: Curve, label: str, colour: str, style: str) -> None:
    """A faint raw curve under its smoothed version."""
    steps, values = loss
    if not len(steps):
        return
    axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
    smoothed = smooth(values, max(1, len(values) // 25))
    axes.plot(steps, smoothed, style, color=colour, linewidth=1.6, label=label)


def _draw_ratio(
    axes: Axes, rows: list[Row], name: str, suffix: str, colour: str, style: str
) -> None:
    """Validation loss over the trivial predictor's, the last value in the legend."""
    steps, values = curve(rows, "eval", f"eval/{name}")
    trivial_steps, trivial = curve(rows, "eval", f"trivial/{name}")
    shared, mine, theirs = np.intersect1d(steps, trivial_steps, return_indices=True)
    if not len(shared):
        return
    ratio = values[mine] / np.where(trivial[theirs] > 0, trivial[theirs], np.nan)
    label = f"{name} {ratio[-1]:.2f}{suffix}"
    axes.plot(shared, ratio, f"o{style}", color=colour, markersize=3.5, label=label)


def _add_legend(axes: Axes, beside: bool) -> None:
    """Inside the axes, or to their right where many entries would hide the curves."""
    if not axes.get_legend_handles_labels()[0]:
        return
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if beside else {}
    axes.legend(frameon=False, fontsize=9, **place)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
