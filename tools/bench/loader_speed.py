"""How fast loaders are, and how much memory their workers take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from multimae.images.preprocess import prepare
from multimae.specs.modalities import Modality
from utils.data.batches import Batch
from utils.data.samplers import GlobalBatchSampler


@dataclass
class Variant:
    """A way of loading, and what was measured of it.

    Attributes:
        name: For the report.
        dataset: The samples.
        loader: Its batches: :class:`Batch`, or a dict of tensors.
        sampler: Of the loader.
        rows: If given, batches are normalised as these rows say.
        rates: Samples per second of each round.
        memory: MiB of the workers after each round.
    """

    name: str
    dataset: Dataset[Any]
    loader: DataLoader[Any]
    sampler: GlobalBatchSampler
    rows: Sequence[Modality] | None = None
    rates: tuple[float, ...] = ()
    memory: tuple[float, ...] = ()

    def epoch(self, epoch: int) -> float:
        """Samples per second of one epoch."""
        self.sampler.set_epoch(epoch)
        count, start = 0, time.perf_counter()
        for batch in self.loader:
            if isinstance(batch, Batch):
                if self.rows is not None:
                    prepare(batch.images, self.rows)
                count += len(batch)
            else:
                count += len(next(iter(batch.values())))
        return count / (time.perf_counter() - start)


def interleave(variants: Sequence[Variant], rounds: int) -> None:
    """Epochs of all variants in turn; the first one starts the workers and counts for nothing."""
    for epoch in range(rounds + 1):
        for variant in variants:
            rate = variant.epoch(epoch)
            if epoch:
                variant.rates += (rate,)
                variant.memory += (worker_memory(variant.loader),)


def worker_memory(loader: DataLoader[Any]) -> float:
    """MiB that a loader's workers have in memory, shared pages in part; 0 where unknown."""
    iterator: Any = getattr(loader, "_iterator", None)
    total = 0
    for worker in getattr(iterator, "_workers", ()):
        rollup = Path(f"/proc/{worker.pid}/smaps_rollup")
        if rollup.exists():
            lines = rollup.read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
