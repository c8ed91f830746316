"""Learning rate and weight decay by optimiser step: linear warm-up, then half a cosine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]


def warmup_cosine(
    base: float, final: float, total_steps: int, warmup_steps: int = 0, start: float = 0.0
) -> FloatArray:
    """One value per step: a straight line from ``start`` to ``base``, then a cosine to ``final``.

    The line has both its ends; the cosine then begins at ``base`` again and is sampled at ``t/T``,
    ``t = 0..T-1``, so that the last value stays just short of ``final`` (the published schedule).

    Args:
        base: Peak value.
        final: What the cosine tends to.
        total_steps: Length of the result.
        warmup_steps: Steps of the line; 0 for none.
        start: First value of the line.

    Returns:
        ``[total_steps]``, float64.

    Raises:
        ValueError: There is nothing to schedule, or the warm-up leaves no step for the cosine.
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
    """The values of a whole run.

    Attributes:
        lr: Learning rate per step, ``[steps]``.
        weight_decay: Weight decay per step, ``[steps]``; ``None`` leaves the groups' own.
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
        """Warm-up and cosine for the rate; a cosine without warm-up for the decay, if it moves."""
        moves = weight_decay_end is not None and weight_decay_end != weight_decay
        return cls(
            lr=warmup_cosine(lr, min_lr, total_steps, warmup_steps, warmup_lr),
            weight_decay=warmup_cosine(weight_decay, float(weight_decay_end or 0.0), total_steps)
            if moves
            else None,
        )

    def __len__(self) -> int:
        """Steps of the run."""
        return len(self.lr)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set every group's learning rate, and its weight decay where that follows the schedule.

        Groups come from :func:`utils.training.optim.param_groups`: ``lr_scale`` multiplies the
        rate, and
        ``scheduled_decay`` says that the group has the run's weight decay, not one of its own.

        Args:
            optimizer: Changed in place.
            step: Optimiser step about to be taken, from 0.

        Returns:
            The learning rate before the groups' scales.

        Raises:
            ValueError: ``step`` is not a step of this run.
        """
        if not 0 <= step < len(self):
            raise ValueError(f"step {step} is outside the schedule's {len(self)} steps")
        lr = float(self.lr[step])
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
            if self.weight_decay is not None and group.get("scheduled_decay", False):
                group["weight_decay"] = float(self.weight_decay[step])
        return lr
