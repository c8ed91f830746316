"""Plot the training curves of runs. Needs matplotlib (extra ``plots``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tools.report.panels import Panel, main_panels, panels_of
from tools.report.run_log import Curve, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE_STYLES = ("-", "--", ":", "-.")


def plot_runs(runs: Mapping[str, Sequence[Row]]) -> Figure:
    """Plot the main panels: losses, validation metrics, learning rate.

    One run has a colour per curve; of several, each has a colour, and each of its curves a line
    style.

    Args:
        runs: Log rows by run name.
    """
    from matplotlib.figure import Figure

    panels = main_panels(panels_of(runs))
    columns = max(1, min(3 if len(panels) > 4 else 2, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    fig = Figure(figsize=(6.5 * columns, 3.8 * lines), dpi=120, layout="constrained")
    axes = np.atleast_1d(fig.subplots(lines, columns)).ravel()
    last = max((x[-1] for panel in panels for x, _ in panel.curves.values()), default=1.0)
    for ax, panel in zip(axes, panels, strict=False):
        _draw(ax, panel, list(runs))
        ax.set_xlim(0, 1.02 * max(last, 1.0))
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return fig


def _draw(ax: Axes, panel: Panel, runs: Sequence[str]) -> None:
    names = list(dict.fromkeys(name for _, name in panel.curves))
    for (run, name), points in panel.curves.items():
        order = names.index(name)
        several = len(runs) > 1
        color = f"C{(runs.index(run) if several else order) % 10}"
        style = LINE_STYLES[order % len(LINE_STYLES) if several else 0]
        label = ", ".join(filter(None, (run if several else "", name)))
        evaluated = not panel.noisy or name == "validation"
        if evaluated and panel.title != "learning rate":
            text = f"{label} {points[1][-1]:.4g}".strip()
            ax.plot(*points, f"o{style}", c=color, ms=3.5, label=text)
        else:
            _plot_smoothed(ax, points, style, color, label)
    if panel.reference is not None:
        ax.axhline(panel.reference, color="0.6", linewidth=1.0, zorder=0)
        ax.set_ylim(0.0, 1.05 * max(panel.reference, ax.get_ylim()[1]))
    better: dict[bool | None, str] = {True: ", higher is better", False: ", lower is better"}
    ax.set_title(panel.title + better.get(panel.higher_is_better, ""), loc="left", fontsize=11)
    ax.set_xlabel("step", fontsize=9)
    ax.grid(color="0.9")
    ax.spines[["top", "right"]].set_visible(False)
    if any(ax.get_legend_handles_labels()[1]):
        ax.legend(frameon=False, fontsize=9, ncols=1 if len(runs) == 1 else 2)


def _plot_smoothed(ax: Axes, points: Curve, style: str, color: str, label: str) -> None:
    """Plot a moving average over the faint original."""
    steps, values = points
    window = max(1, len(values) // 25)
    mean = np.ones(window) / window
    if len(values) == 1:
        ax.plot(steps, values, "o", c=color, ms=3.5, label=label or None)
        return
    ax.plot(steps, values, c=color, alpha=0.2, lw=0.8)
    ax.plot(*(np.convolve(v, mean, "valid") for v in points), style, c=color, label=label or None)
