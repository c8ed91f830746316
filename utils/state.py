"""What a run is at a moment: everything a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from utils.tasks.base import Task


@dataclass
class TrainState:
    """Mutable state of a run.

    Random generators are not part of it: they are reseeded from (seed, step), see
    :mod:`utils.seeding`.

    Attributes:
        task: Model, losses and balancer.
        optimizer: Over the task's parameters.
        scaler: Loss scaler of fp16; disabled otherwise.
        epoch: Epochs completed.
        step: Updates done.
        config: Flat resolved configuration, for the record.
    """

    task: Task
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    epoch: int = 0
    step: int = 0
    config: Mapping[str, object] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model inside the task."""
        return self.task.model

    def start_at(self, epoch: int, steps_per_epoch: int) -> None:
        """Begin a fresh run at a later epoch of its schedule (``--start_epoch``)."""
        self.epoch, self.step = epoch, epoch * steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Checkpoint contents: tensors and plain values only (loadable with ``weights_only``).

        The weights are under ``model``, as in published checkpoints.
        """
        return {
            "model": self.model.state_dict(),
            "task": self.task.extra_state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "config": dict(self.config),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's contents (model weights are loaded by the caller)."""
        self.task.load_extra_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch = int(state["epoch"])
        self.step = int(state["step"])
