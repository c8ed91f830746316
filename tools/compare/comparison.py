"""Plan and scores of a comparison: the same fine-tuning from several weights and seeds.

A plan (YAML, see ``cfgs/results``) lists experiments, starts (initial weights), budgets and seeds;
every combination is a run of a training script. Before them, a plan may pre-train models to start
from, and tune an option such as the learning rate. Scores are read from the runs' logs.
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
_OPTIONAL = {"budgets", "tune", "pretraining"}


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
        tuning: Further options of the runs that tune.
    """

    name: str
    title: str
    script: str
    config: str
    metrics: tuple[Metric, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """How long, or on how much data, a model is trained.

    Attributes:
        name: Folder name, and title in table and plot.
        options: Options of the runs.
        seeds: Seeds; empty: those of the plan.
        only: Names of the experiments; empty: all.
    """

    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tuning:
    """An option that is chosen by one run per value, on data that no table is about.

    Attributes:
        option: Name of the option.
        values: Its candidates.
        options: Further options of these runs, such as ``eval_data_path``.
    """

    option: str
    values: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonRun:
    """One training run of a plan; :attr:`name` is its folder within the plan's."""

    experiment: Experiment
    start: str
    budget: str
    seed: int
    name: str
    folder: Path
    options: Mapping[str, Any]

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
    """A plan: experiments x starts x budgets x seeds.

    Attributes:
        name: Name of the plan's file, and of its place in the report.
        output_dir: Folder of the runs.
        report: Markdown file with the table.
        picture: Plot of the scores.
        seeds: Seeds of every experiment, start and budget.
        common: Options of every run.
        starts: Options by start; the first is the baseline. A start with the key ``pretrain``, a
            mapping of options, is a model that the plan pre-trains itself, one per seed.
        experiments: Compared tasks.
        budgets: Lengths or amounts of data; one without a name by default.
        tune: Option to choose for every experiment and start.
        pretraining: Script, config and common options of the starts with ``pretrain``.
        changes: Options that override the plan's in every run.
    """

    name: str
    output_dir: Path
    report: Path
    picture: Path
    seeds: tuple[int, ...]
    common: Mapping[str, Any]
    starts: Mapping[str, Mapping[str, Any]]
    experiments: tuple[Experiment, ...]
    budgets: tuple[Budget, ...] = (Budget(),)
    tune: Tuning | None = None
    pretraining: Experiment | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def pretraining_runs(self, seeds: Sequence[int] = ()) -> list[ComparisonRun]:
        """List the runs that train the starts of the plan."""
        if self.pretraining is None:
            return []
        return [
            self._run(self.pretraining, start, Budget(), seed, ("pretrain", start, str(seed)))
            for seed in seeds or self.seeds
            for start, options in self.starts.items()
            if "pretrain" in options
        ]

    def tuning_runs(self, only: Sequence[str] = ()) -> list[ComparisonRun]:
        """List the runs that choose the tuned option."""
        if self.tune is None:
            return []
        return [
            self._run(
                experiment,
                start,
                self.budgets[0],
                self.seeds[0],
                ("tune", experiment.name, start, str(value)),
                {**self.tune.options, **experiment.tuning, self.tune.option: value},
            )
            for experiment in self._chosen(only)
            for start in self.starts
            for value in self.tune.values
        ]

    def tuned(self, experiment: Experiment, start: str) -> Any:
        """Best value of the tuned option.

        Raises:
            UserError: Its runs are not finished.
        """
        assert self.tune is not None
        metric = experiment.metrics[0]
        runs = [run for run in self.tuning_runs([experiment.name]) if run.start == start]
        scores = [run.scores()[metric.key] for run in runs if run.done()]
        if len(scores) < len(runs):
            raise UserError(f"{experiment.name}/{start}: {self.tune.option} is not tuned yet")
        best = max(scores) if metric.higher_is_better else min(scores)
        return self.tune.values[scores.index(best)]

    def runs(
        self,
        only: Sequence[str] = (),
        seeds: Sequence[int] = (),
        budgets: Sequence[str] = (),
    ) -> list[ComparisonRun]:
        """List the runs of the chosen experiments, seeds and budgets (default: all), by seed.

        Raises:
            UserError: An experiment or budget is unknown.
        """
        known = [budget.name for budget in self.budgets]
        _check_names("budget", budgets, known)
        chosen = [
            (seed, budget)
            for budget in self.budgets
            if not budgets or budget.name in budgets
            for seed in seeds or budget.seeds or self.seeds
        ]
        return [
            self._run(
                experiment,
                start,
                budget,
                seed,
                (experiment.name, start, *([budget.name] if budget.name else []), str(seed)),
            )
            for seed, budget in sorted(chosen, key=lambda pair: pair[0])
            for experiment in self._chosen(only)
            if not budget.only or experiment.name in budget.only
            for start in self.starts
        ]

    def samples(
        self, experiment: Experiment, start: str, metric: Metric, budget: str
    ) -> list[float]:
        """Values of a metric, one per finished seed."""
        runs = self.runs([experiment.name], budgets=[budget])
        scores = (run.scores() for run in runs if run.start == start)
        return [score[metric.key] for score in scores if metric.key in score]

    def tuned_options(self, run: ComparisonRun) -> Mapping[str, Any]:
        """Options of a run, with the tuned one."""
        if self.tune is None:
            return run.options
        return {**run.options, self.tune.option: self.tuned(run.experiment, run.start)}

    def _chosen(self, only: Sequence[str]) -> list[Experiment]:
        _check_names("experiment", only, [e.name for e in self.experiments])
        return [e for e in self.experiments if not only or e.name in only]

    def _run(
        self,
        experiment: Experiment,
        start: str,
        budget: Budget,
        seed: int,
        parts: Sequence[str],
        options: Mapping[str, Any] | None = None,
    ) -> ComparisonRun:
        folder = self.output_dir.joinpath(*parts)
        of_start = dict(self.starts[start])
        pretrain = of_start.pop("pretrain", None)
        if experiment is self.pretraining:
            every = {**experiment.options, **(pretrain or {})}
        else:
            if pretrain is not None:
                model = self.output_dir / "pretrain" / start / str(seed)
                of_start["finetune"] = str(RunPaths(model).model)
            every = {**self.common, **experiment.options, **of_start, **budget.options}
        every |= {**(options or {}), **self.changes}
        return ComparisonRun(experiment, start, budget.name, seed, "/".join(parts), folder, every)


def _check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"unknown {kind} {', '.join(unknown)}. Known: {', '.join(known)}.")


@dataclass(frozen=True)
class Gain:
    """Improvement of a start over the baseline; means and standard deviations are over seeds."""

    baseline: tuple[float, float]
    other: tuple[float, float]
    gain: float
    deviations: float

    @classmethod
    def of(cls, baseline: Sequence[float], other: Sequence[float], metric: Metric) -> Gain:
        """Compare two samples.

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
        keys = set(raw) if isinstance(raw, dict) else set()
        if not _KEYS <= keys <= _KEYS | _OPTIONAL:
            raise UserError(
                f"{path}: missing keys: {', '.join(sorted(_KEYS - keys)) or 'none'}; "
                f"unknown: {', '.join(sorted(map(str, keys - _KEYS - _OPTIONAL))) or 'none'}"
            )
        raw = _substitute_size(raw, size or raw["size"])
        tune, pretraining = raw.get("tune"), raw.get("pretraining")
        return Comparison(
            path.stem,
            Path(raw["output_dir"]),
            Path(raw["report"]),
            Path(raw["picture"]),
            tuple(raw["seeds"]),
            raw["common"],
            raw["starts"],
            tuple(_experiment(name, each) for name, each in raw["experiments"].items()),
            tuple(
                Budget(str(name), **_with_tuples(each))
                for name, each in raw.get("budgets", {"": {}}).items()
            ),
            Tuning(**_with_tuples(tune)) if tune else None,
            _experiment("pretrain", {"title": "pre-training", **pretraining})
            if pretraining
            else None,
            dict(_change(text) for text in changes),
        )
    except (OSError, *_YAML_ERRORS, TypeError, AttributeError) as err:
        raise UserError(f"{path}: invalid plan ({' '.join(str(err).split())})") from err


def _experiment(name: str, raw: Mapping[str, Any]) -> Experiment:
    fields = {**raw, "metrics": tuple(Metric(**metric) for metric in raw["metrics"])}
    return Experiment(name=name, **fields)


def _with_tuples(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in raw.items()}


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
