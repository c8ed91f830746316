"""Build the run of a configuration as its training script would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from tools.planner.plan_options import (
    ClsPlan,
    DepthPlan,
    PlanConfig,
    PretrainPlan,
    SemsegPlan,
    TaskonomyPlan,
)
from utils.config.finetune_options import FinetuneConfig
from utils.config.parse import to_flat_dict
from utils.data.dataset import MultiModalDataset
from utils.distributed.world import World
from utils.tasks import finetuning as finetune
from utils.tasks import pretraining
from utils.tasks.base import Task
from utils.tasks.classification import ClassificationFinetuning
from utils.tasks.depth_estimation import DepthFinetuning
from utils.tasks.finetuning import Finetuning
from utils.tasks.segmentation import SegmentationFinetuning
from utils.tasks.taskonomy import TaskonomyFinetuning
from utils.training.ema import average
from utils.training.schedule import RunPlan, make_run_plan
from utils.training.seeding import seed_everything
from utils.training.state import TrainState
from utils.training.stepper import Precision, Stepper, choose_precision

_FINETUNING: dict[type[Any], Callable[[Any, World], Finetuning[Any]]] = {
    ClsPlan: ClassificationFinetuning,
    SemsegPlan: SegmentationFinetuning,
    DepthPlan: DepthFinetuning,
    TaskonomyPlan: TaskonomyFinetuning,
}


@dataclass
class PlannedRun:
    """A training run, built but not started.

    Attributes:
        cfg: The configuration.
        world: This process.
        state: Model, losses and optimizer, with initial weights.
        train_set: Augmented training samples.
        precision: Precision of the steps.
        rates: Arguments ``blr`` and ``lr`` of :func:`utils.training.schedule.make_run_plan`.
    """

    cfg: PlanConfig
    world: World
    state: TrainState
    train_set: MultiModalDataset
    precision: Precision
    rates: dict[str, float | None]

    def plan(self, batch_size: int, update_freq: int, processes: int) -> RunPlan:
        """Compute steps and learning rate for other batch settings than the configuration's.

        Raises:
            UserError: An epoch has no step, or warm-up takes all steps.
        """
        batches = len(self.train_set) // (batch_size * processes)
        optim = replace(self.cfg.optim, update_freq=update_freq)
        runtime = replace(self.cfg.runtime, batch_size=batch_size)
        return make_run_plan(batches, processes, optim, runtime, **self.rates)

    def stepper(self, batch_size: int) -> Stepper:
        """Build a single-process stepper without accumulation."""
        plan = replace(self._probe_plan, batch_size=batch_size)
        cfg = self.cfg
        skip_grad = cfg.optim.skip_grad if isinstance(cfg, PretrainPlan) else None
        return Stepper(
            self.state, self.world, plan, self.precision, cfg.optim, cfg.runtime, skip_grad
        )

    @property
    def _probe_plan(self) -> RunPlan:
        """A plan that is valid for every data set: single images, no warm-up."""
        optim = replace(self.cfg.optim, update_freq=1, warmup_steps=-1, warmup_epochs=0)
        runtime = replace(self.cfg.runtime, batch_size=1)
        return make_run_plan(len(self.train_set), 1, optim, runtime, **self.rates)


def build_run(cfg: PlanConfig, world: World) -> PlannedRun:
    """Build model, data and optimizer.

    Raises:
        UserError: The script would reject the configuration.
    """
    seed_everything(cfg.runtime.seed)
    if isinstance(cfg, PretrainPlan):
        inputs, outputs = pretraining.run_modalities(cfg, pretraining.start_weights(cfg))
        pretrain_task = pretraining.build_task(cfg, inputs, outputs).to(world.device)
        train_set = pretraining.build_train_set(cfg, pretrain_task.modalities)
        optimizer = pretraining.pretrain_optimizer(cfg, pretrain_task)
        rates: dict[str, float | None] = {"blr": cfg.optim.blr}
        return _run(cfg, world, pretrain_task, optimizer, train_set, cfg.runtime.precision, rates)
    finetuning = _FINETUNING[type(cfg)](cfg, world)
    task = finetuning.build_task()
    task.freeze(cfg.optim)
    task.to(world.device)
    task.model.set_grad_checkpointing(enable=cfg.runtime.grad_checkpointing)
    optimizer = finetune.finetune_optimizer(cfg, task)
    return _run(cfg, world, task, optimizer, finetuning.train_set(), cfg.precision, cfg.optim.rates)


def _run(
    cfg: PlanConfig,
    world: World,
    task: Task,
    optimizer: torch.optim.Optimizer,
    train_set: MultiModalDataset,
    precision_name: str,
    rates: dict[str, float | None],
) -> PlannedRun:
    precision = choose_precision(precision_name, world.device)
    ema: AveragedModel | None = None
    if isinstance(cfg, FinetuneConfig) and cfg.start.model_ema:
        ema = average(task.model, cfg.start)
    state = TrainState(task, optimizer, precision.scaler(), ema=ema, config=to_flat_dict(cfg))
    task.train()
    return PlannedRun(cfg, world, state, train_set, precision, rates)
