"""Metrics over a data set, independent of batch size and world size.

The state of a meter is a float64 vector of sums. Ranks all-reduce their states
(``all_reduce(meter.state())``, then ``load``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Meter(ABC):
    """Base of all meters: a vector of sums.

    Args:
        size: Number of sums.
        device: Device of the sums; the predictions' device avoids a synchronisation per batch.
    """

    def __init__(self, size: int, device: torch.device | str | None = None) -> None:
        """Start at zero."""
        self._sums = torch.zeros(size, dtype=torch.float64, device=device)

    def state(self) -> Tensor:
        """Copy of the sums, ``[size]`` float64; states of shards can be added."""
        return self._sums.clone()

    def load(self, state: Tensor) -> None:
        """Continue from ``state``.

        Raises:
            ValueError: ``state`` has another size.
        """
        if state.shape != self._sums.shape:
            raise ValueError(
                f"{type(self).__name__} keeps {self._sums.numel()} sums, "
                f"got a state of shape {tuple(state.shape)}"
            )
        self._sums = state.to(self._sums, copy=True)

    def merge(self, other: Meter) -> None:
        """Add the sums of ``other``."""
        self.load(self._sums + other.state().to(self._sums.device))

    def reset(self) -> None:
        """Set all sums to zero."""
        self._sums.zero_()

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Metrics by name; NaN if nothing was counted."""

    def _add(self, terms: Sequence[Tensor]) -> None:
        """Add the sum of ``terms[i]`` (any shape) to sum ``i``."""
        sums = torch.stack([t.detach().double().sum() for t in terms])
        self._sums += sums.to(self._sums.device)


class MeanMeter(Meter):
    """Weighted means of named values, such as a loss per modality.

    Args:
        names: The values.
        device: See :class:`Meter`.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str | None = None) -> None:
        """Start at zero."""
        super().__init__(2 * len(names), device)
        self.names = tuple(names)

    def update(self, values: Mapping[str, Tensor], weight: Tensor | float = 1.0) -> None:
        """Count values.

        Args:
            values: Name -> values of any shape, per sample or per pixel; not batch means, which
                would make the result depend on the batch size.
            weight: Scalar, or one weight per value. Values with weight 0 may be NaN.

        Raises:
            ValueError: Unknown name.
        """
        unknown = [name for name in values if name not in self.names]
        if unknown:
            raise ValueError(f"MeanMeter has no {unknown}; its names are {list(self.names)}")
        terms = [torch.zeros(1, device=self._sums.device)] * (2 * len(self.names))
        for i, name in enumerate(self.names):
            if name not in values:
                continue
            value = values[name].detach().double()
            w = torch.as_tensor(weight, dtype=torch.float64, device=value.device).expand_as(value)
            terms[2 * i : 2 * i + 2] = [torch.where(w != 0, value * w, 0.0), w]
        self._add(terms)

    def compute(self) -> dict[str, float]:
        """Mean by name."""
        sums = self._sums.tolist()
        return {name: ratio(sums[2 * i], sums[2 * i + 1]) for i, name in enumerate(self.names)}


def ratio(total: float, count: float) -> float:
    """``total / count``; NaN if ``count`` is 0."""
    return total / count if count else math.nan
