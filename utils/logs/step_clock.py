"""Where the time of a run goes: waiting for data, or computing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class StepClock:
    """Times the gaps between batches; read and reset at every log line."""

    def __init__(self) -> None:
        """Start now."""
        self.reset()

    def reset(self) -> None:
        """Begin a new window."""
        self._start = time.perf_counter()
        self._waited = 0.0
        self._samples = 0

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches on, counting the time spent waiting for them."""
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
