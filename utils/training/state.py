"""Training state: the contents of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import AveragedModel

from multimae.weights.pretrained import spec_entry
from utils.distributed.world import World
from utils.logs.window import LogWindow
from utils.tasks.base import Task
from utils.training.nonfinite import require_finite
from utils.training.seeding import load_rng_state, rng_state

if TYPE_CHECKING:
    from utils.distributed.sharding import FullModelBuilder


@dataclass(frozen=True)
class Goal:
    """Metric that selects the best checkpoint.

    Attributes:
        metric: Name in the evaluators' results.
        higher_is_better: Whether larger values are better.
    """

    metric: str
    higher_is_better: bool = True

    def better(self, value: float, best: float | None) -> bool:
        """Whether ``value`` beats ``best``; always false for NaN."""
        if math.isnan(value):
            return False
        return best is None or (value > best if self.higher_is_better else value < best)


def names_changed(what: str, old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """Difference of two fingerprints of sample names, for messages."""
    other = " other" if old["count"] == new["count"] else ""
    return f"{what}: {old['count']} names -> {new['count']}{other} names"


@dataclass
class TrainState:
    """Mutable state of a run.

    Attributes:
        task: Model, losses and balancer.
        optimizer: Optimizer of the task's parameters.
        scaler: Gradient scaler for fp16; disabled otherwise.
        epoch: Completed epochs.
        step: Completed steps.
        ema: EMA of the model, or ``None``.
        best: Best value of the goal's metric so far.
        stale: Evaluations in a row that did not improve ``best``.
        skipped: Steps (from 0) whose batches a rollback skips.
        bad_sample_names: Names of bad samples so far, see :class:`utils.data.batches.BadSamples`.
        window: Logged values since the last log line.
        global_batch: Samples per step over all ranks.
        config: Flat resolved configuration, stored for reference.
        identity: Values that must not change on resume: ``samples`` (see
            :meth:`utils.data.dataset.MultiModalDataset.fingerprint`) and ``modalities``, in order.
        eval_samples: Fingerprint of the evaluation set that ``best`` belongs to, if there is one.
        scored: Step of the last evaluation.
        full_model_builder: Gathers sharded models; ``None`` without sharding.
    """

    task: Task
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    epoch: int = 0
    step: int = 0
    ema: AveragedModel | None = None
    best: float | None = None
    stale: int = 0
    skipped: set[int] = field(default_factory=set)
    bad_sample_names: set[str] = field(default_factory=set)
    window: LogWindow = field(default_factory=LogWindow)
    global_batch: int = 0
    config: Mapping[str, object] = field(default_factory=dict)
    identity: Mapping[str, object] = field(default_factory=dict)
    eval_samples: Mapping[str, object] | None = None
    scored: int = -1
    full_model_builder: FullModelBuilder | None = None

    @property
    def model(self) -> nn.Module:
        """The model inside the task."""
        return self.task.model

    @property
    def scored_model(self) -> nn.Module:
        """Model that is evaluated and saved as the best: the EMA, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def full_scored_model(self) -> nn.Module:
        """Scored model; a full copy if it is sharded (collective)."""
        scored = self.scored_model
        return scored if self.full_model_builder is None else self.full_model_builder.build(scored)

    def scored_weights(self, world: World) -> dict[str, Any]:
        """Full weights of the scored model, on rank 0 (collective).

        Raises:
            RunError: A weight is NaN or infinite.
        """
        weights = self._gathered(self.scored_model.state_dict(), world)
        require_finite({"model": weights, "step": self.step})
        return weights

    def improve(self, goal: Goal, values: Mapping[str, float]) -> bool:
        """Update ``best`` and ``stale`` from ``values``; return whether ``best`` improved."""
        value = values.get(goal.metric, math.nan)
        if not goal.better(value, self.best):
            self.stale += goal.metric in values
            return False
        self.best, self.stale = value, 0
        return True

    def evaluate_on(self, samples: Mapping[str, object]) -> str:
        """Set the evaluation set; forget the best value of another one.

        Returns:
            The change from the set of the checkpoint; empty if there is none.
        """
        old, self.eval_samples = self.eval_samples, samples
        if old is None or old == samples:
            return ""
        self.best, self.stale = None, 0
        return names_changed("evaluation samples", old, samples)

    def start_at(self, epoch: int, steps_per_epoch: int) -> None:
        """Start a new run at a later epoch of its schedule (``--start_epoch``)."""
        self.epoch, self.step = epoch, epoch * steps_per_epoch

    def state_dict(self, world: World) -> dict[str, Any]:
        """Checkpoint contents, loadable with ``weights_only`` (collective).

        The weights are under ``model``, as in published checkpoints. Sharded tensors are gathered
        on rank 0.
        """
        return self._gathered(self._contents(self.window.state_dict(world), rng_state()), world)

    def defer_state_dict(self, world: World) -> Callable[[], dict[str, Any]]:
        """Capture the state, for a checkpoint on a signal during evaluation (collective).

        Returns a function, not collective, that gives the checkpoint contents. It reads the
        weights when called, since evaluation does not change them; sharded weights are gathered
        now.
        """
        if self.full_model_builder is not None:
            contents = self.state_dict(world)
            return lambda: contents
        window, rng, epoch = self.window.state_dict(world), rng_state(), self.epoch
        return lambda: {**self._contents(window, rng), "epoch": epoch}

    def _contents(self, window: dict[str, Any], rng: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "task": self.task.extra_state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "eval_samples": self.eval_samples,
            "skipped": sorted(self.skipped),
            "left_out": sorted(self.bad_sample_names),
            "scored": self.scored,
            "rng": rng,
            "window": window,
            "global_batch": self.global_batch,
            **({} if self.ema is None else {"model_ema": self.ema.state_dict()}),
            "config": dict(self.config),
            **spec_entry(self.model),
            "identity": self.full_identity(),
        }

    def full_identity(self) -> dict[str, object]:
        """``identity``, the trained parameters' names in order, and the global batch size."""
        names = {id(p): name for name, p in self.task.named_parameters()}
        groups = self.optimizer.param_groups
        trained = [names.get(id(p), "") for group in groups for p in group["params"]]
        return {**self.identity, "parameters": trained, "global_batch": self.global_batch}

    def load_state_dict(self, state: Mapping[str, Any], world: World) -> None:
        """Restore everything but the model weights, which the caller loads."""
        self.task.load_extra_state_dict(state["task"])
        optimizer = state["optimizer"]
        if self.full_model_builder is not None:
            from utils.distributed.sharding import shard_optimizer_state

            optimizer = shard_optimizer_state(optimizer, self.optimizer)
        self.optimizer.load_state_dict(optimizer)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch = int(state["epoch"])
        self.step = int(state["step"])
        saved_set = state.get("eval_samples")
        self.eval_samples = self.eval_samples or saved_set
        same_set = saved_set in (None, self.eval_samples)
        self.best = state.get("best") if same_set else None
        self.stale = int(state.get("stale", 0)) if same_set else 0
        self.scored = int(state.get("scored", -1))
        self.skipped = set(state.get("skipped", ()))
        self.bad_sample_names.update(state.get("left_out", ()))  # a rollback keeps names
        if "window" in state:
            self.window.load_state_dict(state["window"], world)
        if "rng" in state:
            load_rng_state(state["rng"])
        if self.ema is not None and "model_ema" in state:
            self.ema.load_state_dict(state["model_ema"])

    def _gathered(self, contents: dict[str, Any], world: World) -> dict[str, Any]:
        if self.full_model_builder is None:
            return contents
        from utils.distributed.sharding import gather_full_state

        gathered: dict[str, Any] = gather_full_state(contents, world)
        return gathered
