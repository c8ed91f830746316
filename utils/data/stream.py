"""The batches of a whole run, across the ends of its epochs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from utils.data.batches import Batch
from utils.data.samplers import GlobalBatchSampler


class BatchStream:
    """An iterator that the end of an epoch does not end.

    While an epoch ends, is scored and saved, loader processes go on with the next one: a new
    iteration in every epoch would wait for its first batch each time, for as long as one process
    takes to decode all of it.
    """

    def __init__(
        self, loader: DataLoader[Any], sampler: GlobalBatchSampler, per_epoch: int, total: int
    ) -> None:
        """Nothing is read yet.

        Args:
            loader: The loader.
            sampler: Of the loader.
            per_epoch: Batches taken from every epoch.
            total: Batches of the run: none is prepared beyond them.
        """
        self.loader, self.sampler = loader, sampler
        self.per_epoch, self.total = per_epoch, total
        self._batches: Iterator[Batch] = iter(())
        self._next = -1  # nowhere

    def at(self, batch: int) -> BatchStream:
        """The stream, whose next batch is number ``batch`` of the run.

        Anywhere but where the stream is already (after a resume, or going back to a checkpoint),
        what was prepared is thrown away.
        """
        if batch != self._next:
            self.sampler.set_range(batch, self.total, self.per_epoch)
            self._batches, self._next = iter(self.loader), batch
        return self

    def __iter__(self) -> BatchStream:
        """Itself: an iteration goes on where the one before was left."""
        return self

    def __next__(self) -> Batch:
        """The next batch; none before :meth:`at` was called."""
        batch = next(self._batches)
        self._next += 1
        return batch
