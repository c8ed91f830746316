"""Plan and scores of a comparison: the same fine-tuning from several weights and seeds.

A plan (YAML, see ``cfgs/results``) lists experiments, starts (initial weights) and seeds; every
combination is a run of a training script. Scores are read from the runs' logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from multimae.specs.errors import UserError
from tools.report.run_log import Curve, Row, curve, read_log
from utils.config.parse import load_yaml
from utils.logs.paths import RunPaths

_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: an invalid date
_KEYS = {"size", "output_dir", "report", "picture", "seeds", "common", "starts", "experiments"}


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    Attributes:
        key: Name in the log.
        title: Displayed name, with the unit.
        higher_is_better: Whether larger values are better.
    """

    key: str
    title: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Experiment:
    """A task with its inputs.

    Attributes:
        name: Folder name.
        title: Displayed name.
        script: Training script in the repository root.
        config: YAML config of the script.
        metrics: Compared metrics, the most important first.
        options: Further options of the script.
    """

    name: str
    title: str
    script: str
    config: str
    metrics: tuple[Metric, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonRun:
    """One experiment from one start with one seed."""

    experiment: Experiment
    start: str
    seed: int
    folder: Path
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """``experiment/start/seed``."""
        return f"{self.experiment.name}/{self.start}/{self.seed}"

    def arguments(self) -> list[str]:
        """Script and flags of the command."""
        flags = {**self.options, "seed": self.seed, "output_dir": str(self.folder)}
        return [
            self.experiment.script,
            *("--config", self.experiment.config),
            *(part for key, value in flags.items() for part in _flag(key, value)),
        ]

    def scores(self) -> dict[str, float]:
        """Metrics after the last epoch, by key; empty for an unfinished run."""
        log = RunPaths(self.folder).log
        if not log.is_file() or not log.stat().st_size:  # stopped before the first log row
            return {}
        rows = read_log(log)
        last = max((row["epoch"] for row in rows if row.get("kind") == "eval"), default=0)
        if last < int(self.options.get("epochs", 1)):
            return {}
        curves = {m.key: self.curve(m, rows) for m in self.experiment.metrics}
        return {key: float(values[-1]) for key, (_, values) in curves.items() if len(values)}

    def curve(self, metric: Metric, rows: Sequence[Row] | None = None) -> Curve:
        """Metric by epoch."""
        return curve(read_log(self.folder) if rows is None else rows, "eval", metric.key, "epoch")

    def done(self) -> bool:
        """Whether the last epoch has been evaluated."""
        return bool(self.scores())


@dataclass(frozen=True)
class Comparison:
    """A plan: experiments x starts x seeds.

    Attributes:
        output_dir: Folder of the runs.
        report: Markdown file with the table.
        picture: Plot of the metrics by epoch.
        seeds: Seeds of every experiment and start.
        common: Options of every run.
        starts: Options by start; the first is the baseline.
        experiments: Compared tasks.
        changes: Options that override the plan's in every run.
    """

    output_dir: Path
    report: Path
    picture: Path
    seeds: tuple[int, ...]
    common: Mapping[str, Any]
    starts: Mapping[str, Mapping[str, Any]]
    experiments: tuple[Experiment, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)

    def runs(self, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[ComparisonRun]:
        """List the runs of the chosen experiments and seeds (default: all), ordered by seed.

        Raises:
            UserError: An experiment is unknown.
        """
        names = [e.name for e in self.experiments]
        unknown = [name for name in only if name not in names]
        if unknown:
            raise UserError(f"unknown experiment {', '.join(unknown)}. Known: {', '.join(names)}.")
        chosen = [e for e in self.experiments if not only or e.name in only]
        return [
            ComparisonRun(
                experiment,
                start,
                seed,
                self.output_dir / experiment.name / start / str(seed),
                {**self.common, **experiment.options, **self.starts[start], **self.changes},
            )
            for seed in seeds or self.seeds
            for experiment in chosen
            for start in self.starts
        ]

    def samples(self, experiment: Experiment, start: str, metric: Metric) -> list[float]:
        """Values of a metric, one per finished seed."""
        runs = (r for r in self.runs([experiment.name]) if r.start == start)
        scores = (run.scores() for run in runs)
        return [score[metric.key] for score in scores if metric.key in score]


@dataclass(frozen=True)
class Gain:
    """Improvement of a start over the baseline; means and standard deviations are over seeds."""

    baseline: tuple[float, float]
    other: tuple[float, float]
    gain: float
    deviations: float

    @classmethod
    def of(cls, baseline: Sequence[float], other: Sequence[float], metric: Metric) -> Gain:
        """Compare two samples of at least two values.

        ``gain`` is positive if ``other`` is better; ``deviations`` is ``gain`` divided by the
        pooled standard deviation ``sqrt((s1^2 + s2^2) / 2)`` (with n - 1).
        """
        low, high = mean_and_std(baseline), mean_and_std(other)
        gain = (high[0] - low[0]) * (1 if metric.higher_is_better else -1)
        pooled = float(np.sqrt((low[1] ** 2 + high[1] ** 2) / 2))
        return cls(low, high, gain, gain / pooled if pooled > 0 else float("nan"))


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (with n - 1; nan for one value)."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), deviation


def read_comparison(path: Path, size: str | None = None, changes: Sequence[str] = ()) -> Comparison:
    """Read a plan.

    Args:
        path: A YAML of ``cfgs/results``. ``{size}`` in its strings is replaced by the model size.
        size: Overrides the plan's ``size``.
        changes: ``option=value`` overrides for every run.

    Raises:
        UserError: The file is unreadable, or keys are missing or unknown.
    """
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or raw.keys() != _KEYS:
            keys = set(raw) if isinstance(raw, dict) else set()
            raise UserError(
                f"{path}: missing keys: {', '.join(sorted(_KEYS - keys)) or 'none'}; "
                f"unknown: {', '.join(sorted(map(str, keys - _KEYS))) or 'none'}"
            )
        raw = _substitute_size(raw, size or raw["size"])
        return Comparison(
            Path(raw["output_dir"]),
            Path(raw["report"]),
            Path(raw["picture"]),
            tuple(raw["seeds"]),
            raw["common"],
            raw["starts"],
            tuple(_experiment(name, each) for name, each in raw["experiments"].items()),
            dict(_change(text) for text in changes),
        )
    except (OSError, *_YAML_ERRORS, TypeError, AttributeError) as err:
        raise UserError(f"{path}: invalid plan ({' '.join(str(err).split())})") from err


def _experiment(name: str, raw: Mapping[str, Any]) -> Experiment:
    fields = {**raw, "metrics": tuple(Metric(**metric) for metric in raw["metrics"])}
    return Experiment(name=name, **fields)


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: expected OPTION=VALUE")
    try:
        return key, load_yaml(value)
    except _YAML_ERRORS as err:
        raise UserError(f"--set {text}: not YAML ({' '.join(str(err).split())})") from err


def _substitute_size(value: Any, size: str) -> Any:
    """Replace ``{size}`` in all strings of ``value``."""
    if isinstance(value, str):
        return value.replace("{size}", size)
    if isinstance(value, list):
        return [_substitute_size(each, size) for each in value]
    if isinstance(value, dict):
        return {key: _substitute_size(each, size) for key, each in value.items()}
    return value


def _flag(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{'' if value else 'no_'}{key}"]
    return [f"--{key}", "none" if value is None else str(value)]
