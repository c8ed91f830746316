"""Table and plot of a comparison (:mod:`tools.compare.comparison`)."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from multimae.specs.errors import UserError
from tools.common.origin import commit, processor
from tools.compare.comparison import Comparison, Experiment, Gain, Metric, mean_and_std

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    mark = f"<!-- results: {plan.name} -->"
    parts = text.split(mark)
    if len(parts) != 3:
        raise UserError(f"{plan.report}: needs two lines {mark} around the table")
    table = "\n".join([*_table(plan), "", *_origin(plan, command)])
    plan.report.write_text(f"{parts[0]}{mark}\n{table}\n{mark}{parts[2]}", encoding="utf-8")
    draw(plan)
    return [plan.report, plan.picture]


def _table(plan: Comparison) -> list[str]:
    baseline, *others = plan.starts
    heads = ["task", "metric", baseline]
    for start in others:
        heads += [start, "gain", "gain / std"]
    columns = ["---"] * 2 + ["---:"] * (len(heads) - 2)
    lines: list[str] = []
    for budget in plan.budgets:
        rows = [
            row
            for experiment in plan.experiments
            if not budget.only or experiment.name in budget.only
            for metric in experiment.metrics
            if (row := _row(plan, experiment, metric, budget.name))
        ]
        if rows:
            title = ["", f"**{budget.name}**", ""] if budget.name else []
            lines += [*title, *("| " + " | ".join(row) + " |" for row in (heads, columns, *rows))]
    if not lines:
        raise UserError(f"no finished runs in {plan.output_dir}: run `tools/results.py run` first")
    return lines[1:] if not lines[0] else lines


def _row(plan: Comparison, experiment: Experiment, metric: Metric, budget: str) -> list[str]:
    """Cells of a row; empty unless every start has a finished run."""
    values = [plan.samples(experiment, start, metric, budget) for start in plan.starts]
    if not all(values):
        return []
    arrow = "↑" if metric.higher_is_better else "↓"
    gains = [Gain.of(values[0], other, metric) for other in values[1:]]
    cells = [experiment.title, f"{metric.title} {arrow}", _spread(mean_and_std(values[0]))]
    for gain in gains:
        deviations = f"{gain.deviations:+.1f}" if np.isfinite(gain.deviations) else "–"
        cells += [_spread(gain.other), f"{gain.gain:+.3g}", deviations]
    return cells


def _spread(values: tuple[float, float]) -> str:
    mean, std = values
    digits = int(np.clip(2 - np.floor(np.log10(max(abs(mean), 1e-9))), 0, 5))
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if np.isfinite(std) else "")


def _origin(plan: Comparison, command: str) -> list[str]:
    """Seeds, command, date, hardware and commit of the numbers."""
    seeds = ", ".join(map(str, plan.seeds))
    return [
        f"Mean ± standard deviation over seeds {seeds}, last epoch; gain / std is in units of the "
        "pooled standard deviation."
        + "".join(
            f" {budget.name}: seed {', '.join(map(str, budget.seeds))} alone."
            for budget in plan.budgets
            if budget.seeds
        )
        + (_tuned(plan) if plan.tune else ""),
        f"`{command}`, {datetime.date.today():%Y-%m-%d}, {_hardware()}, "
        f"torch {torch.__version__.partition('+')[0]}, commit {commit('-dirty')}.",
    ]


def _tuned(plan: Comparison) -> str:
    assert plan.tune is not None
    chosen = [
        f"{experiment.title}: " + ", ".join(f"{plan.tuned(experiment, s):g}" for s in plan.starts)
        for experiment in plan.experiments
    ]
    candidates = ", ".join(f"{value:g}" for value in plan.tune.values)
    return (
        f" {plan.tune.option} is the best of {candidates} on data that is not scored here, for "
        f"{', '.join(plan.starts)}: {'; '.join(chosen)}."
    )


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()} ({torch.backends.cpu.get_cpu_capability()})"


def draw(plan: Comparison) -> None:
    """Plot the main metric of every experiment by budget, or by epoch if there is only one.

    Mean over seeds ± standard deviation.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError as err:
        raise UserError("plots need matplotlib: pip install 'multimae[plots]'") from err
    panels = [(experiment, experiment.metrics[0]) for experiment in plan.experiments]
    by_budget = len(plan.budgets) > 1
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    fig = Figure(figsize=(4.3 * columns, 3.1 * rows), dpi=120, layout="constrained")
    axes = np.atleast_1d(fig.subplots(rows, columns)).ravel()
    for ax, (experiment, metric) in zip(axes, panels, strict=False):
        for start, colour in zip(plan.starts, _COLOURS, strict=False):
            _draw_start(ax, plan, experiment, metric, start, colour)
        ax.set_title(experiment.title, loc="left", fontsize=10)
        ax.set_ylabel(metric.title, fontsize=9)
        if by_budget:
            names = [budget.name for budget in plan.budgets]
            ax.set_xticks(range(len(names)), names)
        else:
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
    """Draw final scores by budget, or scores by epoch if the plan has one budget."""
    xs: list[float] = []
    values: list[list[float]] = []
    if len(plan.budgets) > 1:
        for x, budget in enumerate(plan.budgets):
            scores = plan.samples(experiment, start, metric, budget.name)
            if scores and (not budget.only or experiment.name in budget.only):
                xs.append(x)
                values.append(scores)
    else:
        runs = [r for r in plan.runs([experiment.name]) if r.start == start and r.done()]
        curves = [dict(zip(*run.curve(metric), strict=True)) for run in runs]
        xs = sorted(set.intersection(*map(set, curves))) if curves else []
        values = [[curve[x] for curve in curves] for x in xs]
    if not xs:
        return
    mean, std = np.array([mean_and_std(each) for each in values]).T
    std = np.nan_to_num(std)
    axes.plot(xs, mean, "o-", color=colour, markersize=3, label=start)
    axes.fill_between(xs, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
