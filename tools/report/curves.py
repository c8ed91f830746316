"""Plot the training curves of runs. Needs matplotlib (extra ``plots``)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from tools.report.run_log import Curve, Row, curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE_STYLES = ("-", "--", ":", "-.")
_TITLES = ("training loss", "training loss by task", "validation loss / baseline", "learning rate")


def plot_runs(runs: dict[str, list[Row]]) -> Figure:
    """Plot total and per-task training loss, validation loss and learning rate.

    Args:
        runs: Log rows by run name; each run has a line style, each task a color.
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=(13, 7.6), dpi=120, layout="constrained")
    axes = fig.subplots(2, 2).ravel()
    total, by_task, evaluation, rate = axes
    rows = [row for run in runs.values() for row in run]
    names = dict.fromkeys(_names(rows, "loss") + _names(rows, "eval"))
    colors = {name: f"C{i}" for i, name in enumerate(names)}
    for (run, rows), style in zip(runs.items(), cycle(LINE_STYLES), strict=False):
        suffix = f" ({run})" if len(runs) > 1 else ""
        _plot_smoothed(total, curve(rows, "train", "loss"), style, "black", run)
        for name in _names(rows, "loss"):
            loss = curve(rows, "train", f"loss/{name}")
            _plot_smoothed(by_task, loss, style, colors[name], name + suffix)
        for name in _names(rows, "eval"):
            steps, ratio = _relative_loss(rows, name)
            if len(steps):
                label = f"{name} {ratio[-1]:.2f}{suffix}"
                evaluation.plot(steps, ratio, f"o{style}", c=colors[name], ms=3.5, label=label)
        rate.plot(*curve(rows, "train", "lr"), style, c="black", label=run)
    evaluation.axhline(1.0, color="0.6", linewidth=1.0, zorder=0)
    evaluation.set_ylim(bottom=0.0)
    for ax, title in zip(axes, _TITLES, strict=True):
        ax.set_title(title, loc="left", fontsize=11)
        ax.set_xlabel("step", fontsize=9)
        ax.grid(color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=9, ncols=min(2, len(runs)))
    return fig


def _names(rows: Iterable[Row], prefix: str) -> list[str]:
    """Tasks with a key ``prefix/task``, in order of appearance."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(f"{prefix}/"))
    return [key.removeprefix(f"{prefix}/") for key in keys]


def _relative_loss(rows: list[Row], name: str) -> Curve:
    """Validation loss divided by the constant baseline's."""
    steps, losses = curve(rows, "eval", f"eval/{name}")
    baseline_steps, baseline = curve(rows, "eval", f"trivial/{name}")
    shared, i, j = np.intersect1d(steps, baseline_steps, return_indices=True)
    return shared, losses[i] / np.where(baseline[j] > 0, baseline[j], np.nan)


def _plot_smoothed(ax: Axes, points: Curve, style: str, color: str, label: str) -> None:
    """Plot a moving average over the faint original."""
    steps, values = points
    if not len(steps):
        return
    window = max(1, len(values) // 25)
    mean = np.ones(window) / window
    ax.plot(steps, values, c=color, alpha=0.2, lw=0.8)
    ax.plot(*(np.convolve(v, mean, "valid") for v in points), style, c=color, label=label)
