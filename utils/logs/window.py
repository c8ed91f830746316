"""Logged values between two log lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from utils.distributed.world import World


class LogWindow:
    """Means of logged values since the last log line, kept on the device.

    The mean of a loss is over the updates in which it counts anything: some sample has the
    modality, some pixel is valid. The mean of no updates is NaN. The first step with a NaN or Inf
    is recorded on the device, without synchronising.
    """

    def __init__(self) -> None:
        """Empty window."""
        self.names: tuple[str, ...] = ()
        self.sums = self.updates = self.first_bad = torch.zeros(0)
        self.count = 0

    def add(
        self, step: int, values: Mapping[str, Tensor], counted: Mapping[str, Tensor] | None = None
    ) -> None:
        """Add the scalars of one step (the same names every time).

        Args:
            step: From 0.
            values: By name.
            counted: Bool 0-D by name, equal on all processes: whether the value counts anything.
                Values without an entry always do.
        """
        row = torch.stack([v.float() for v in values.values()])
        always, counted = row.new_ones(()), counted or {}
        new_updates = torch.stack([counted.get(name, always).float() for name in values])
        if not self.names:
            self.names = tuple(values)
        if len(self.first_bad) != len(row):
            self.first_bad = torch.full_like(row, -1.0)
        if self.count:
            self.sums = self.sums.to(row.device) + row
            self.updates = self.updates.to(row.device) + new_updates
        else:
            self.sums, self.updates = row, new_updates
        new = ~row.isfinite() & (self.first_bad < 0)
        self.first_bad = torch.where(new, float(step + 1), self.first_bad)
        self.count += 1

    def bad_values(self, world: World, *, ignored: str = "") -> dict[int, list[str]]:
        """Names of NaN and Inf values by the step (from 1) where each began (collective).

        Args:
            world: The processes; a value of any of them counts.
            ignored: A value that may be NaN or Inf.
        """
        if not len(self.first_bad):
            return {}
        first = world.max(self.first_bad).tolist()
        found: dict[int, list[str]] = {}
        for name, step in zip(self.names, first, strict=True):
            if step >= 0 and name != ignored:
                found.setdefault(int(step), []).append(name)
        return dict(sorted(found.items()))

    def read(self, world: World) -> dict[str, float]:
        """Means over the updates that count and all processes (collective); begins a new window."""
        if not self.count:  # every step was skipped
            return {}
        mean = world.sum(self.sums / self.updates) / world.size  # 0 / 0 is NaN
        self.count = 0
        return dict(zip(self.names, mean.tolist(), strict=True))

    def state_dict(self, world: World) -> dict[str, Any]:
        """For checkpoints (collective): ``sums`` of every process, (ranks, names)."""
        sums = torch.zeros(0)
        if self.count:
            sums = self.sums.new_zeros(world.size, len(self.sums))
            sums[world.rank] = self.sums
            sums = world.sum(sums)
        updates = self.updates.cpu() if self.count else torch.zeros(0)
        return {
            "names": list(self.names),
            "sums": sums.cpu(),
            "updates": updates,
            "count": self.count,
        }

    def load_state_dict(self, state: Mapping[str, Any], world: World) -> None:
        """Inverse of :meth:`state_dict`; the mean if the number of processes has changed."""
        self.names, self.count = tuple(state["names"]), int(state["count"])
        rows = state["sums"]
        if self.count:
            rows = rows[world.rank] if len(rows) == world.size else rows.mean(0)
        # Older checkpoints count every update for every value.
        self.updates = state.get("updates", torch.full((len(self.names),), float(self.count)))
        self.sums, self.first_bad = rows, torch.zeros(0)


T = TypeVar("T")


class StepClock:
    """Measures throughput and the time spent waiting for data, between log lines."""

    def __init__(self) -> None:
        """Start now."""
        self.reset()

    def reset(self) -> None:
        """Begin a new window."""
        self._start = time.perf_counter()
        self._waited = 0.0
        self._samples = 0

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches and measure the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            begin = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - begin
            yield batch

    def count(self, samples: int) -> None:
        """Add finished samples (over all processes)."""
        self._samples += samples

    def read(self) -> dict[str, float]:
        """``images_per_s`` and ``data_wait`` (share of time, 0 to 1) of this window."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        return {
            "images_per_s": self._samples / elapsed,
            "data_wait": min(1.0, self._waited / elapsed),
        }
