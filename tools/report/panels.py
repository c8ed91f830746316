"""What to plot of runs: panels of curves, for images and for the run board."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tools.report.run_log import Curve, Row, curve
from utils.logs.known_metrics import MASKED_LOSS, SPLITS, Metric, goal_of, metrics_of

MIN_PANELS = 4
RATIO = "validation loss / baseline"


@dataclass
class Panel:
    """Curves over steps with one y axis.

    Attributes:
        title: Title, with the unit.
        curves: By run and name; an empty name for the only curve of a run.
        noisy: Whether the curves are of single steps, to be smoothed.
        reference: Value to compare with.
        higher_is_better: ``None`` if neither is.
    """

    title: str
    curves: dict[tuple[str, str], Curve] = field(default_factory=dict)
    noisy: bool = False
    reference: float | None = None
    higher_is_better: bool | None = None

    def add(self, run: str, name: str, points: Curve) -> None:
        """Add a curve, unless it is empty."""
        if len(points[0]):
            self.curves[run, name] = points


def panels_of(runs: Mapping[str, Sequence[Row]]) -> list[Panel]:
    """All panels that have a curve, the most important first.

    Args:
        runs: Log rows by run name.
    """
    rows = [row for each in runs.values() for row in each]
    metrics = {run: evaluated(each) for run, each in runs.items()}
    goals = [goal for each in metrics.values() if (goal := goal_of(each))]
    firsts = tuple({goal.group or goal.title for goal in goals})
    evaluations = [panel for panel in _evaluations(runs, metrics) if panel.curves]
    evaluations.sort(key=lambda panel: panel.title != RATIO and not panel.title.startswith(firsts))
    panels = [
        _losses(runs, metrics),
        *evaluations[: max(1, len(firsts))],
        _train(runs, "training loss by task", _parts(rows, "loss"), noisy=True),
        *evaluations[max(1, len(firsts)) :],
        _train(runs, "learning rate", {"lr": ""}),
        _train(runs, "images per second", {"images_per_s": ""}, noisy=True),
        _train(runs, "gradient norm", {"grad_norm": ""}, noisy=True),
    ]
    return [panel for panel in panels if panel.curves]


def main_panels(panels: Sequence[Panel], limit: int = 6) -> list[Panel]:
    """The panels of a picture: at least :data:`MIN_PANELS` where there are as many."""
    extra = [p for p in panels if p.title in ("images per second", "gradient norm")]
    main = [p for p in panels if p not in extra]
    rate = [p for p in main if p.title == "learning rate"]
    main = [p for p in main if p not in rate][: limit - len(rate)] + rate
    return main + extra[: max(0, MIN_PANELS - len(main))]


def evaluated(rows: Iterable[Row]) -> list[Metric]:
    """Metrics of the evaluations during training; tests are single values."""
    keys = dict.fromkeys(key for row in rows if row.get("kind") == "eval" for key in row)
    return metrics_of(key for key in keys if not key.startswith(f"{SPLITS[1]}/"))


def _losses(runs: Mapping[str, Sequence[Row]], metrics: Mapping[str, Sequence[Metric]]) -> Panel:
    panel = Panel("loss", noisy=True, higher_is_better=False)
    validated = {run for run in runs if any(m.title == "loss" for m in metrics[run])}
    for run, rows in runs.items():
        panel.add(run, "training" if validated else "", curve(rows, "train", "loss"))
        if run in validated:
            panel.add(run, "validation", curve(rows, "eval", "eval/loss"))
    return panel


def _evaluations(
    runs: Mapping[str, Sequence[Row]], metrics: Mapping[str, Sequence[Metric]]
) -> list[Panel]:
    """A panel per group of metrics; pre-training: loss divided by the constant baseline's."""
    panels = {RATIO: Panel(RATIO, reference=1.0, higher_is_better=False)}
    for run, rows in runs.items():
        divided = {m.heading for m in metrics[run] if m.part}
        for m in metrics[run]:
            if m.title == MASKED_LOSS:
                panels[RATIO].add(run, m.part, _relative_loss(rows, m.part))
            elif m.title != "loss" and m.key.partition("/")[0] not in ("trivial", "gain"):
                title = f"{m.group or m.title} ({m.unit})" if m.unit else m.group or m.title
                panel = panels.setdefault(title, Panel(title, higher_is_better=m.higher_is_better))
                name = m.part or (m.title if m.group else "mean" * (m.heading in divided))
                steps, values = curve(rows, "eval", m.key)
                panel.add(run, name, (steps, values * m.scale))
    return list(panels.values())


def _train(
    runs: Mapping[str, Sequence[Row]], title: str, keys: Mapping[str, str], *, noisy: bool = False
) -> Panel:
    panel = Panel(title, noisy=noisy)
    for run, rows in runs.items():
        for key, name in keys.items():
            panel.add(run, name, curve(rows, "train", key))
    return panel


def _parts(rows: Iterable[Row], prefix: str) -> dict[str, str]:
    """Keys ``prefix/task`` of training rows and their tasks, in order of appearance."""

    def keys() -> Iterator[str]:
        for row in rows:
            if row.get("kind") == "train":
                yield from (key for key in row if key.startswith(f"{prefix}/"))

    return {key: key.removeprefix(f"{prefix}/") for key in keys()}


def _relative_loss(rows: Sequence[Row], name: str) -> Curve:
    """Validation loss divided by the constant baseline's."""
    steps, losses = curve(rows, "eval", f"eval/{name}")
    baseline_steps, baseline = curve(rows, "eval", f"trivial/{name}")
    shared, i, j = np.intersect1d(steps, baseline_steps, return_indices=True)
    return shared, losses[i] / np.where(baseline[j] > 0, baseline[j], np.nan)
