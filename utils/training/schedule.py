"""Schedules of learning rate and weight decay: linear warm-up and cosine decay."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from multimae.specs.errors import UserError
from utils.config.options import OptimOptions, RuntimeOptions

FloatArray = npt.NDArray[np.float64]

USEFUL_LRS = (1e-5, 1e-2)
"""Range of peak learning rates that work for Adam."""
GOOD_LR = 1e-4  # suggested instead of a lower one
MIN_STEPS = 100


def warmup_cosine(
    base: float, final: float, total_steps: int, warmup_steps: int = 0, start: float = 0.0
) -> FloatArray:
    """Linear warm-up from ``start`` to ``base``, then cosine decay to ``final``.

    As published, both parts include ``base``, and the cosine is sampled at ``t/T``, ``t = 0..T-1``:
    the last value is slightly above ``final``.

    Args:
        base: Peak value.
        final: Limit of the cosine.
        total_steps: Number of steps.
        warmup_steps: Steps of the warm-up.
        start: First value of the warm-up.

    Returns:
        ``[total_steps]``, float64.

    Raises:
        ValueError: No steps, or no step left after the warm-up.
    """
    if total_steps < 1:
        raise ValueError(
            f"a schedule needs at least one step, got {total_steps}: check the number of epochs "
            "and that the training set holds at least one batch"
        )
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} steps does not fit a run of {total_steps} steps: lower "
            "warmup_epochs / warmup_steps or train longer"
        )
    steps = total_steps - warmup_steps
    phase = np.pi * np.arange(steps) / steps
    cosine = final + 0.5 * (base - final) * (1.0 + np.cos(phase))
    return np.concatenate([np.linspace(start, base, warmup_steps), cosine])


@dataclass(frozen=True)
class Schedule:
    """Learning rate and weight decay of every step.

    Attributes:
        lr: Learning rate, ``[steps]``.
        weight_decay: Weight decay, ``[steps]``; ``None``: that of the parameter groups.
    """

    lr: FloatArray
    weight_decay: FloatArray | None = None

    @classmethod
    def cosine(
        cls,
        *,
        lr: float,
        min_lr: float,
        total_steps: int,
        warmup_steps: int = 0,
        warmup_lr: float = 0.0,
        weight_decay: float = 0.0,
        weight_decay_end: float | None = None,
    ) -> Schedule:
        """Warm-up and cosine for lr; cosine without warm-up for weight decay, if it changes."""
        changes = weight_decay_end is not None and weight_decay_end != weight_decay
        return cls(
            lr=warmup_cosine(lr, min_lr, total_steps, warmup_steps, warmup_lr),
            weight_decay=warmup_cosine(weight_decay, float(weight_decay_end or 0.0), total_steps)
            if changes
            else None,
        )

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.lr)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set learning rate and weight decay of every group for the next step.

        Groups come from :func:`utils.training.optim.param_groups`. Their learning rate is
        multiplied by ``lr_scale``; their weight decay is set if ``scheduled_decay`` is true.

        Args:
            optimizer: Changed in place.
            step: Index of the next step, from 0.

        Returns:
            Learning rate before scaling.

        Raises:
            ValueError: ``step`` is out of range.
        """
        if not 0 <= step < len(self):
            raise ValueError(f"step {step} is outside the schedule's {len(self)} steps")
        lr = float(self.lr[step])
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
            if self.weight_decay is not None and group.get("scheduled_decay", False):
                group["weight_decay"] = float(self.weight_decay[step])
        return lr


@dataclass(frozen=True)
class RunPlan:
    """Number of steps, batch sizes and schedule of a run. A step is one optimizer step.

    Attributes:
        epochs: Number of epochs.
        steps_per_epoch: Steps per epoch.
        accum_steps: Micro-batches per step and rank.
        batch_size: Samples per micro-batch.
        world_size: Number of ranks.
        lr: Absolute peak learning rate.
        schedule: Learning rate and weight decay by step.
        max_steps: Stop after this many steps.
        warmup_steps: Steps of the warm-up.
    """

    epochs: int
    steps_per_epoch: int
    accum_steps: int
    batch_size: int
    world_size: int
    lr: float
    schedule: Schedule
    max_steps: int | None = None
    warmup_steps: int = 0

    @property
    def global_batch(self) -> int:
        """Samples per step over all ranks."""
        return self.batch_size * self.accum_steps * self.world_size

    @property
    def total_steps(self) -> int:
        """Number of steps of the run."""
        total = self.epochs * self.steps_per_epoch
        return min(total, self.max_steps) if self.max_steps else total

    def describe(self) -> str:
        """Describe the plan in one line."""
        return (
            f"{self.epochs} epochs x {self.steps_per_epoch} steps, global batch "
            f"{self.global_batch} = {self.batch_size} x {self.accum_steps} accumulated x "
            f"{self.world_size} processes, peak lr {self.lr:.3g}, {self.total_steps} steps, "
            f"{self.warmup_steps} of them warm-up ({self.warmup_steps / self.total_steps:.0%})"
        )

    def warnings(self, optim: OptimOptions, blr: float | None = None) -> Iterator[str]:
        """Warn about settings that are unlikely to work, each with a remedy.

        Args:
            optim: Optimizer options.
            blr: Learning rate per 256 samples; ``None`` if the rate is absolute.
        """
        lowest, highest = USEFUL_LRS
        adam = "adam" in optim.opt.lower()
        if adam and self.lr < (lowest if blr is not None else lowest / 10):
            remedy = f"raise --lr to about {GOOD_LR:g}"
            if blr is not None:
                remedy = (
                    f"raise --blr to about {GOOD_LR * 256 / self.global_batch:.2g}, or the global "
                    f"batch to about {math.ceil(GOOD_LR * 256 / blr)}"
                )
            source = "" if blr is None else f" = blr {blr:g} x {self.global_batch} / 256"
            yield f"peak lr {self.lr:.2g}{source} is too low to learn from: {remedy}"
        if adam and self.lr > highest:
            flag = "--lr" if blr is None else "--blr"
            yield f"peak lr {self.lr:.2g} is above {highest:g}, training may diverge: lower {flag}"
        for flag, value in (("--warmup_lr", optim.warmup_lr), ("--min_lr", optim.min_lr)):
            if value > self.lr and (flag == "--min_lr" or self.warmup_steps):
                yield f"{flag} {value:g} is above the peak lr {self.lr:.2g}: lower it"
        if self.warmup_steps >= self.total_steps / 2 > 0:
            yield (
                f"warm-up takes {self.warmup_steps} of {self.total_steps} steps: lower "
                "--warmup_epochs or --warmup_steps, or train longer"
            )
        if self.total_steps < MIN_STEPS and self.max_steps is None:
            yield (
                f"the run has only {self.total_steps} steps: raise --epochs, or lower the global "
                f"batch of {self.global_batch}"
            )


def make_run_plan(
    batches_per_epoch: int,
    world_size: int,
    optim: OptimOptions,
    runtime: RuntimeOptions,
    blr: float | None,
    lr: float | None = None,
) -> RunPlan:
    """Compute absolute learning rate, number of steps and schedule.

    Args:
        batches_per_epoch: Loader batches per epoch and rank.
        world_size: Number of ranks.
        optim: Optimizer options.
        runtime: Runtime options.
        blr: Learning rate per 256 samples of the global batch.
        lr: Absolute learning rate; overrides ``blr``.

    Raises:
        UserError: No step per epoch, or no step after the warm-up.
    """
    steps = batches_per_epoch // optim.update_freq
    if steps == 0:
        raise UserError(
            f"--update_freq {optim.update_freq}: an epoch has only {batches_per_epoch} batches; "
            "lower --update_freq or --batch_size."
        )
    global_batch = runtime.batch_size * optim.update_freq * world_size
    if lr is None:
        lr = (blr or 0.0) * global_batch / 256
    total = runtime.epochs * steps
    if runtime.schedule_to_max_steps and runtime.max_steps:
        total = min(total, runtime.max_steps)
    warmup = optim.warmup_steps if optim.warmup_steps > 0 else optim.warmup_epochs * steps
    try:
        schedule = Schedule.cosine(
            lr=lr,
            min_lr=optim.min_lr,
            total_steps=total,
            warmup_steps=warmup,
            warmup_lr=optim.warmup_lr,
            weight_decay=optim.weight_decay,
            weight_decay_end=optim.weight_decay_end,
        )
    except ValueError as err:
        raise UserError(str(err)) from err
    return RunPlan(
        epochs=runtime.epochs,
        steps_per_epoch=steps,
        accum_steps=optim.update_freq,
        batch_size=runtime.batch_size,
        world_size=world_size,
        lr=lr,
        schedule=schedule,
        max_steps=runtime.max_steps,
        warmup_steps=warmup,
    )
