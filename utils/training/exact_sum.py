"""Sums without rounding: the same in any order, on any number of processes.

A float64 is cut into limbs, whole multiples of 2**52, 2**26, 1, 2**-26 ... of 26 bits each. They
are integers that float64 adds exactly, so nothing depends on the order in which they are added;
only the final value is rounded, once. What lies below 2**-78 is cut off, value by value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BASE = 2.0**26
_UNITS = tuple(2.0**e for e in (52, 26, 0, -26, -52, -78))
LIMBS = len(_UNITS)


def limbs_of_sum(values: Tensor) -> Tensor:
    """Limbs of the sum of ``values`` (any shape, fewer than 2**27), ``(LIMBS,)`` float64.

    Values that are not finite make them nan.
    """
    rest = values.detach().double()
    limbs = []
    for unit in _UNITS:
        part = (rest / unit).trunc()
        rest = rest - part * unit  # exact: both are multiples of the same power of two
        limbs.append(part.sum())
    return torch.stack(limbs)


def carry(limbs: Tensor) -> Tensor:
    """The same numbers ``(..., LIMBS)`` with limbs of 26 bits again, so that more can be added."""
    columns = list(limbs.unbind(-1))
    for i in range(LIMBS - 1, 0, -1):
        over = (columns[i] / _BASE).trunc()
        columns[i] = columns[i] - over * _BASE
        columns[i - 1] = columns[i - 1] + over
    return torch.stack(columns, dim=-1)


def total(limbs: Sequence[float]) -> float:
    """The number that limbs stand for, correctly rounded."""
    return math.fsum(limb * unit for limb, unit in zip(limbs, _UNITS, strict=True))
