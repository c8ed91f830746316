"""Configuration of ``tools/plan_run.py``: a training script's, plus a ``plan`` section."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from multimae.specs.errors import UserError
from utils.config.cls_options import ClsConfig
from utils.config.command_line import read_command_line
from utils.config.depth_options import DepthConfig
from utils.config.fields import option, options_of
from utils.config.parse import load_yaml, parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.config.semseg_options import SemsegConfig
from utils.config.taskonomy_options import TaskonomyConfig

ScriptName = Literal["auto", "pretraining", "cls", "semseg", "depth", "taskonomy"]


@dataclass(frozen=True)
class PlanOptions:
    """The plan."""

    seconds: float = option(60.0, "Duration of the measurements", within="[1, inf)")
    processes: int | None = option(
        None, "Processes of the run on this machine; none: its GPUs, or 1", within="[1, inf)"
    )
    global_batch: int | None = option(
        None, "Images per step; none: batch_size x update_freq x world_size", within="[1, inf)"
    )
    script: ScriptName = option("auto", "The script of the run; auto: by the options given")


@dataclass(frozen=True)
class PretrainPlan(PretrainConfig):
    """Measure this machine and plan a run of run_pretraining_multimae.py."""

    plan: PlanOptions = field(default_factory=PlanOptions)


@dataclass(frozen=True)
class ClsPlan(ClsConfig):
    """Measure this machine and plan a run of run_finetuning_cls.py."""

    plan: PlanOptions = field(default_factory=PlanOptions)


@dataclass(frozen=True)
class SemsegPlan(SemsegConfig):
    """Measure this machine and plan a run of run_finetuning_semseg.py."""

    plan: PlanOptions = field(default_factory=PlanOptions)


@dataclass(frozen=True)
class DepthPlan(DepthConfig):
    """Measure this machine and plan a run of run_finetuning_depth.py."""

    plan: PlanOptions = field(default_factory=PlanOptions)


@dataclass(frozen=True)
class TaskonomyPlan(TaskonomyConfig):
    """Measure this machine and plan a run of run_finetuning_taskonomy.py."""

    plan: PlanOptions = field(default_factory=PlanOptions)


PlanConfig: TypeAlias = PretrainPlan | ClsPlan | SemsegPlan | DepthPlan | TaskonomyPlan
PLANS: dict[str, type[PlanConfig]] = {
    "pretraining": PretrainPlan,
    "cls": ClsPlan,
    "semseg": SemsegPlan,
    "depth": DepthPlan,
    "taskonomy": TaskonomyPlan,
}


def read_plan_config(argv: Sequence[str] | None = None) -> PlanConfig:
    """Parse the configuration of the script that the options belong to.

    Raises:
        UserError: Invalid options, or options that fit several scripts.
    """
    argv = sys.argv[1:] if argv is None else argv
    return parse_config(_plan_class(argv), argv)


def _plan_class(argv: Sequence[str]) -> type[PlanConfig]:
    """Find the script that knows the options given; the model's name decides ties."""
    known = {name: options_of(cls()) for name, cls in PLANS.items()}
    everything = {name: o for options in known.values() for name, o in options.items()}
    line = read_command_line(argv, everything)
    given: dict[str, Any] = {}
    for path in line.config_files:
        given |= _keys(path)
    given |= {setting.option.name: setting.value for setting in line.settings}
    named = str(given.get("script", "auto"))
    if named in PLANS:
        return PLANS[named]
    missing = {name: len(given.keys() - options.keys()) for name, options in known.items()}
    fewest = min(missing.values())
    fitting = [name for name, count in missing.items() if count == fewest]
    model = str(given.get("model", PretrainConfig().model.model))
    pretrains = model.startswith("pretrain_")
    fitting = [name for name in fitting if (name == "pretraining") == pretrains] or fitting
    if len(fitting) > 1:
        raise UserError(
            f"these options fit several scripts ({', '.join(fitting)}): choose one with --script"
        )
    return PLANS[fitting[0]]


def _keys(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file; empty if unreadable, which parsing reports later."""
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
