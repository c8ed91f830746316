"""Known metrics of log rows: titles, units and directions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

SPLITS = ("eval", "test")
MASKED_LOSS = "masked loss"


@dataclass(frozen=True)
class Metric:
    """A number that evaluations report.

    Attributes:
        key: Name in the log.
        title: Displayed name.
        unit: Displayed unit; empty for none.
        higher_is_better: ``None`` if neither is.
        part: Task, modality or label that it is about; empty for all.
        scale: Displayed value per logged value.
        group: Title of the plot that it shares with others; empty for its own title.
    """

    key: str
    title: str
    unit: str = ""
    higher_is_better: bool | None = True
    part: str = ""
    scale: float = 1.0
    group: str = ""

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def name(self) -> str:
        """Title, with the part."""
        return f"{self.title}, {self.part}" if self.part else self.title

    def better(self, value: float, than: float) -> bool:
        """Whether ``value`` beats ``than``."""
        return value > than if self.higher_is_better else value < than

    def best(self, values: Sequence[float]) -> int | None:
        """Index of the first best finite value; ``None`` if there is none."""
        found = None
        for i, value in enumerate(values):
            if math.isfinite(value) and (found is None or self.better(value, values[found])):
                found = i
        return None if self.higher_is_better is None else found


_KNOWN = {
    m.key: m
    for m in (
        Metric("gain", "gain over the baseline", "%", scale=100.0),
        Metric("trivial", "baseline", higher_is_better=None),
        Metric("samples", "samples", higher_is_better=None),
        Metric("mean_iou", "mean IoU", "%", group="IoU and accuracy"),
        Metric("mean_accuracy", "mean accuracy", "%", group="IoU and accuracy"),
        Metric("pixel_accuracy", "pixel accuracy", "%", scale=100.0, group="IoU and accuracy"),
        Metric("acc1", "top-1 accuracy", "%", group="accuracy"),
        Metric("acc5", "top-5 accuracy", "%", group="accuracy"),
        Metric("map", "mAP", "%", group="mAP and F1"),
        Metric("f1_micro", "micro F1", "%", group="mAP and F1"),
        Metric("f1_macro", "macro F1", "%", group="mAP and F1"),
        Metric("delta_1", "δ < 1.25", "%", scale=100.0, group="δ accuracy"),
        Metric("delta_2", "δ < 1.25²", "%", scale=100.0, group="δ accuracy"),
        Metric("delta_3", "δ < 1.25³", "%", scale=100.0, group="δ accuracy"),
        Metric("rel", "abs. rel.", "", False, group="relative error"),
        Metric("srel", "sq. rel.", "", False),
        Metric("rmse", "RMSE", "", False),
        Metric("log10", "log RMSE", "", False, group="relative error"),
        Metric("mae", "MAE", "", False),
        Metric("r2", "R²"),
        Metric("l1", "L1", "", False),
        Metric("loss", "loss", "", False),
        Metric("knn", "kNN accuracy", "%"),
        Metric("rankme", "RankMe"),
    )
}
# The first that a run has is its goal, as the scripts choose their best checkpoints.
_GOALS = ("gain", "mean_iou", "acc1", "map", "rmse", "l1", "loss")


def metrics_of(keys: Iterable[str]) -> list[Metric]:
    """Describe the metrics of evaluation rows, in their order."""
    known = dict.fromkeys(keys)
    depth = any(f"{split}/delta_1" in known for split in SPLITS)
    found = []
    for key in known:
        split, _, rest = key.partition("/")
        if split not in SPLITS:
            split, rest = "", key
        name, _, part = rest.partition("/")
        if f"trivial/{rest}" in known:  # pre-training: the loss of a modality
            metric = Metric(key, MASKED_LOSS, "", False, rest)
        elif name in _KNOWN:
            metric = replace(_KNOWN[name], key=key, part=part)
        elif split:
            metric = Metric(key, rest, higher_is_better=None)
        else:
            continue
        if depth and name in ("rmse", "srel"):
            metric = replace(metric, unit="mm")
        found.append(metric if split != "test" else replace(metric, title=f"test {metric.title}"))
    return found


def goal_of(metrics: Sequence[Metric]) -> Metric | None:
    """The metric that selects the best checkpoint, of those of a run."""
    depth = any(m.key == "eval/delta_1" for m in metrics)
    whole = {m.key.removeprefix("eval/"): m for m in metrics if not m.part}
    names = (name for name in _GOALS if name != "rmse" or depth)
    return next((whole[name] for name in names if name in whole), None)


def value_of(row: Mapping[str, Any], metric: Metric) -> float:
    """Displayed value in a row; NaN where there is none."""
    value = row.get(metric.key)
    return value * metric.scale if isinstance(value, (int, float)) else math.nan
