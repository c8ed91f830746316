"""Comparing starting points: the same fine-tuning from several weights, over several seeds.

A plan (YAML, see ``cfgs/results``) names experiments, starts and seeds; every combination is a run
of one of the scripts. What came out is read from the runs' logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tools.report.curves import Curve, Row, curve
from tools.report.run_log import read_log
from utils.logs.errors import UserError
from utils.logs.paths import RunPaths

_BROKEN = (yaml.YAMLError, ValueError, RecursionError)  # of YAML; ValueError: no such date
_KEYS = {"size", "output_dir", "report", "picture", "seeds", "common", "starts", "experiments"}


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    Attributes:
        key: Its name in the log.
        title: Its name for readers, with the unit.
        higher_is_better: Its direction.
    """

    key: str
    title: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Experiment:
    """One task with its inputs.

    Attributes:
        name: Folder name.
        title: For readers.
        script: Script in the repository's root.
        config: Its YAML.
        metrics: What is compared, the most important first.
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
        """Script and flags."""
        flags = {**self.options, "seed": self.seed, "output_dir": str(self.folder)}
        return [
            self.experiment.script,
            *("--config", self.experiment.config),
            *(word for key, value in flags.items() for word in _flag(key, value)),
        ]

    def scores(self) -> dict[str, float]:
        """Value of every metric after the last epoch, by key; empty where the run is not done."""
        log = RunPaths(self.folder).log
        if not log.is_file() or not log.stat().st_size:  # stopped before its first row
            return {}
        rows = read_log(log)
        last = max((row["epoch"] for row in rows if row.get("kind") == "eval"), default=0)
        if last < int(self.options.get("epochs", 1)):
            return {}
        curves = {m.key: self.curve(m, rows) for m in self.experiment.metrics}
        return {key: float(values[-1]) for key, (_, values) in curves.items() if len(values)}

    def curve(self, metric: Metric, rows: Sequence[Row] | None = None) -> Curve:
        """A metric against epochs."""
        return curve(read_log(self.folder) if rows is None else rows, "eval", metric.key, "epoch")

    def done(self) -> bool:
        """Whether the run has scored its last epoch."""
        return bool(self.scores())


@dataclass(frozen=True)
class Comparison:
    """A plan: experiments x starts x seeds.

    Attributes:
        output_dir: Folder of the runs.
        report: Markdown file that holds the table.
        picture: PNG of the metrics against epochs.
        seeds: Seeds of every experiment and start.
        common: Options of every run.
        starts: Options by start; the first is the baseline.
        experiments: What is compared.
        changes: Options of every run that replace the plan's.
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
        """All runs, seed by seed, or those of some experiments and seeds.

        Raises:
            UserError: An unknown experiment.
        """
        names = [e.name for e in self.experiments]
        unknown = [name for name in only if name not in names]
        if unknown:
            raise UserError(f"no experiment {', '.join(unknown)}; there are {', '.join(names)}")
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
        """A metric of the finished runs, one value per seed."""
        runs = (r for r in self.runs([experiment.name]) if r.start == start)
        scores = (run.scores() for run in runs)
        return [score[metric.key] for score in scores if metric.key in score]


@dataclass(frozen=True)
class Gain:
    """A start against the baseline: means, standard deviations over seeds, difference."""

    baseline: tuple[float, float]
    other: tuple[float, float]
    gain: float
    deviations: float

    @classmethod
    def of(cls, baseline: Sequence[float], other: Sequence[float], metric: Metric) -> Gain:
        """From at least two values of each.

        ``gain`` is positive where ``other`` is better; ``deviations`` is it in units of the pooled
        standard deviation ``sqrt((s1^2 + s2^2) / 2)`` (of n - 1).
        """
        low, high = mean_and_std(baseline), mean_and_std(other)
        gain = (high[0] - low[0]) * (1 if metric.higher_is_better else -1)
        pooled = float(np.sqrt((low[1] ** 2 + high[1] ** 2) / 2))
        return cls(low, high, gain, gain / pooled if pooled > 0 else float("nan"))


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of n - 1; nan for one value)."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), deviation


def read_comparison(path: Path, size: str | None = None, changes: Sequence[str] = ()) -> Comparison:
    """Read a plan.

    Args:
        path: A YAML of ``cfgs/results``. ``{size}`` in its texts stands for the model's size.
        size: Instead of the plan's ``size``.
        changes: ``option=value``, for every run.

    Raises:
        UserError: Unreadable, or keys that are missing or unknown.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or raw.keys() != _KEYS:
            given = set(raw) if isinstance(raw, dict) else set()
            raise UserError(
                f"{path}: missing keys: {', '.join(sorted(_KEYS - given)) or 'none'}; "
                f"unknown: {', '.join(sorted(map(str, given - _KEYS))) or 'none'}"
            )
        raw = _filled(raw, size or raw["size"])
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
    except (OSError, *_BROKEN, TypeError, AttributeError) as err:
        raise UserError(f"{path}: not a plan ({' '.join(str(err).split())})") from err


def _experiment(name: str, raw: Mapping[str, Any]) -> Experiment:
    fields = {**raw, "metrics": tuple(Metric(**metric) for metric in raw["metrics"])}
    return Experiment(name=name, **fields)


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: expected OPTION=VALUE")
    try:
        return key, yaml.safe_load(value)
    except _BROKEN as err:
        raise UserError(f"--set {text}: not YAML ({' '.join(str(err).split())})") from err


def _filled(value: Any, size: str) -> Any:
    """``value`` with every ``{size}`` in its texts replaced."""
    if isinstance(value, str):
        return value.replace("{size}", size)
    if isinstance(value, list):
        return [_filled(each, size) for each in value]
    if isinstance(value, dict):
        return {key: _filled(each, size) for key, each in value.items()}
    return value


def _flag(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{'' if value else 'no_'}{key}"]
    return [f"--{key}", "none" if value is None else str(value)]
