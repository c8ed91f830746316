"""The end of a run: its best score, where its files are, the next command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from shlex import quote
from typing import TYPE_CHECKING, Any

from utils.logs.paths import RunPaths

if TYPE_CHECKING:
    from utils.training.state import Goal


def summary_lines(
    paths: RunPaths, goal: Goal, best: float | None, *, pretrained: bool
) -> Iterator[str]:
    """Describe a finished run.

    Args:
        paths: Its output folder.
        goal: What selects the best checkpoint.
        best: Best value of the goal; ``None`` without evaluations.
        pretrained: Whether its weights are to be fine-tuned next.
    """
    if best is not None:
        from utils.logs.known_metrics import metrics_of
        from utils.logs.score_tables import with_unit

        row = _row_of(paths, goal.metric, best)
        metric = next(m for m in metrics_of([*row, goal.metric]) if m.key == goal.metric)
        when = f" after epoch {row['epoch']:.4g}" if row else ""
        yield f"best {metric.title}: {with_unit(best * metric.scale, metric)}{when}"
    yield from file_lines(paths, pretrained=pretrained)


def file_lines(paths: RunPaths, *, pretrained: bool) -> Iterator[str]:
    """Where weights and pictures of a run are, and what can be done next."""
    found = [path for path in (paths.best, paths.model) if path.is_file()]
    if paths.model.is_file():
        yield f"weights: {paths.model}"
    if paths.best.is_file():
        yield f"best weights: {paths.best}"
    if paths.pictures.is_dir():
        yield f"pictures: {paths.pictures}"
    if found and pretrained:
        weights = quote(str(found[-1]))
        yield f"next: python run_finetuning_semseg.py --finetune {weights} (or _cls, _depth, ...)"
    elif found:
        yield f"next: multimae predict {quote(str(found[0]))} DATA --out predicted --overlay"


def _row_of(paths: RunPaths, key: str, value: float) -> dict[str, Any]:
    """The first evaluation in the log with this value; empty if there is none."""
    if paths.log.is_file():
        with paths.log.open(encoding="utf-8") as file:
            for line in file:
                if '"eval"' in line and (row := json.loads(line)).get(key) == value:
                    return dict(row)
    return {}
