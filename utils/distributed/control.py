"""Flags that all processes must agree on between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from utils.distributed.world import World


class Control(NamedTuple):
    """Flags of one process, or reduced over all.

    Attributes:
        stop: A signal asked to stop.
        save: A checkpoint is due by the clock.
        failed: Rank 0 could not save.
        empty: No sample of a batch could be read.
        bad_samples: Samples that could not be read.
    """

    stop: bool = False
    save: bool = False
    failed: bool = False
    empty: bool = False
    bad_samples: int = 0


class ControlGroup:
    """All-reduces :class:`Control` over gloo on the CPU, without synchronising the accelerator."""

    def __init__(self, world: World) -> None:
        """Create the group (collective)."""
        self.world = world
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None

    def all_reduce(self, mine: Control) -> Control:
        """Reduce over processes: any of the flags, the sum of bad samples."""
        if self._group is None:
            return mine
        row = torch.tensor([*map(int, mine)], dtype=torch.int64)
        dist.all_reduce(row, group=self._group)
        *flags, bad = row.tolist()
        return Control(*map(bool, flags))._replace(bad_samples=bad)

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """The items of all processes, by rank, on all of them."""
        if self._group is None:
            return list(items)
        parts: list[Sequence[Any]] = [() for _ in range(self.world.size)]
        dist.all_gather_object(parts, list(items), group=self._group)
        return [item for part in parts for item in part]
