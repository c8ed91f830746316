"""Table and plot of a comparison (:mod:`tools.compare.comparison`)."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from multimae.specs.errors import UserError
from tools.compare.comparison import Comparison, Experiment, Gain, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARK = "<!-- results -->"
_COLOURS = ("#8a8f99", "#1f6fb2", "#c8553d", "#3f8f4f")


def write_report(plan: Comparison, command: str) -> list[Path]:
    """Rewrite the table between the two markers of the report and draw the plot.

    Args:
        plan: Comparison; only finished runs are reported.
        command: Command to print below the table.

    Returns:
        The files written.

    Raises:
        UserError: The report lacks the two markers, or no run is finished.
    """
    text = plan.report.read_text(encoding="utf-8") if plan.report.is_file() else ""
    parts = text.split(MARK)
    if len(parts) != 3:
        raise UserError(f"{plan.report}: needs two lines {MARK} around the table")
    table = "\n".join([*_table(plan), "", *_origin(plan, command)])
    plan.report.write_text(f"{parts[0]}{MARK}\n{table}\n{MARK}{parts[2]}", encoding="utf-8")
    draw(plan)
    return [plan.report, plan.picture]


def _table(plan: Comparison) -> list[str]:
    baseline, *others = plan.starts
    heads = ["task", "metric", baseline]
    for start in others:
        heads += [start, "gain", "gain / std"]
    rows = []
    for experiment in plan.experiments:
        for metric in experiment.metrics:
            first = plan.samples(experiment, baseline, metric)
            values = {start: plan.samples(experiment, start, metric) for start in others}
            if len(first) < 2 or any(len(v) < 2 for v in values.values()):
                continue
            rows.append(_row(experiment, metric, first, list(values.values())))
    if not rows:
        raise UserError(f"no finished runs in {plan.output_dir}: run `tools/results.py run` first")
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _row(
    experiment: Experiment,
    metric: Metric,
    baseline: Sequence[float],
    others: Sequence[Sequence[float]],
) -> list[str]:
    arrow = "↑" if metric.higher_is_better else "↓"
    gains = [Gain.of(baseline, values, metric) for values in others]
    cells = [experiment.title, f"{metric.title} {arrow}", _spread(gains[0].baseline)]
    for gain in gains:
        cells += [_spread(gain.other), f"{gain.gain:+.3g}", f"{gain.deviations:+.1f}"]
    return cells


def _spread(mean_and_std: tuple[float, float]) -> str:
    mean, std = mean_and_std
    digits = int(np.clip(2 - np.floor(np.log10(max(abs(mean), 1e-9))), 0, 5))
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def _origin(plan: Comparison, command: str) -> list[str]:
    """Seeds, command, date, hardware and commit of the numbers."""
    seeds = ", ".join(map(str, plan.seeds))
    return [
        f"Mean ± standard deviation over seeds {seeds}, last epoch; gain / std is in units of the "
        "pooled standard deviation.",
        f"`{command}`, {datetime.date.today():%Y-%m-%d}, {_hardware()}, "
        f"torch {torch.__version__.partition('+')[0]}, commit {_commit()}.",
    ]


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    level = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()} ({level})"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


def draw(plan: Comparison) -> None:
    """Plot the main metric of every experiment by epoch: mean over seeds ± standard deviation.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError as err:
        raise UserError("plots need matplotlib: pip install 'multimae[plots]'") from err
    panels = [(experiment, experiment.metrics[0]) for experiment in plan.experiments]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    fig = Figure(figsize=(4.3 * columns, 3.1 * rows), dpi=120, layout="constrained")
    axes = np.atleast_1d(fig.subplots(rows, columns)).ravel()
    for ax, (experiment, metric) in zip(axes, panels, strict=False):
        for start, colour in zip(plan.starts, _COLOURS, strict=False):
            _draw_start(ax, plan, experiment, metric, start, colour)
        ax.set_title(experiment.title, loc="left", fontsize=10)
        ax.set_ylabel(metric.title, fontsize=9)
        ax.set_xlabel("epoch", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(color="#e6e8ec", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    axes[0].legend(frameon=False, fontsize=9)
    plan.picture.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(plan.picture)


def _draw_start(
    axes: Axes, plan: Comparison, experiment: Experiment, metric: Metric, start: str, colour: str
) -> None:
    runs = [r for r in plan.runs([experiment.name]) if r.start == start and r.done()]
    if not runs:
        return
    curves = [run.curve(metric) for run in runs]
    shared = sorted(set.intersection(*({float(e) for e in epochs} for epochs, _ in curves)))
    values = np.array([[dict(zip(*c, strict=True))[e] for e in shared] for c in curves])
    mean = values.mean(axis=0)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
    axes.plot(shared, mean, "o-", color=colour, markersize=3, label=start)
    axes.fill_between(shared, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
