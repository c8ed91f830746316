"""Order of samples, batches of a rank, and random numbers of a sample.

Order and augmentation are pure functions of (seed, epoch, index): the same on any number of ranks
and workers, and after a resume in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler

from multimae.specs.errors import UserError
from utils.training.seeding import mix_seed


@dataclass(frozen=True)
class SampleKey:
    """Key of a data set: sample ``index`` with the augmentation of ``epoch``."""

    epoch: int
    index: int


@contextmanager
def sample_rng(seed: int, key: SampleKey) -> Iterator[None]:
    """Seed torch's CPU generator, which torchvision draws from, for one sample; then restore it."""
    # torch.manual_seed would also reseed the accelerators.
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(mix_seed(seed, key.epoch, key.index))
        yield
    finally:
        generator.set_state(state)


class GlobalBatchSampler(Sampler[list[SampleKey]]):
    """Shard of every global batch for this rank.

    The epoch's order is cut into global batches of ``batch_size * world_size``; rank ``r`` gets
    samples ``r * batch_size ...`` of each. One rank with batch 2B and two ranks with batch B thus
    train on the same global batches. Every rank gets the same number of batches, all of full size.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        """Set up the order of epoch 0.

        Args:
            num_samples: Samples in the data set.
            batch_size: Samples per batch and rank.
            rank: This process.
            world_size: Number of processes.
            seed: Seed of the order.
            shuffle: Draw a new order every epoch; otherwise keep that of the data set.
            drop_last: Drop the last, incomplete global batch; otherwise fill it from the start of
                the epoch's order.

        Raises:
            UserError: There is no sample, or no full batch with ``drop_last``.
        """
        self.num_samples, self.batch_size = num_samples, batch_size
        self.rank, self.world_size = rank, world_size
        self.seed, self.shuffle = seed, shuffle
        self.global_batch = batch_size * world_size
        if num_samples < (self.global_batch if drop_last else 1):
            raise UserError(
                f"the training set has {num_samples} samples, fewer than one global batch of "
                f"{self.global_batch} ({batch_size} x {world_size} processes): lower --batch_size "
                "or add data."
            )
        rest = 0 if drop_last else self.global_batch - 1
        self._num_batches = (num_samples + rest) // self.global_batch
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Select all batches of an epoch for the next iteration."""
        self.set_range(epoch * len(self), (epoch + 1) * len(self), len(self))

    def set_range(self, start: int, stop: int, per_epoch: int) -> None:
        """Select the batches of the next iteration, numbered across epochs.

        Args:
            start: First batch: ``epoch * per_epoch + index in the epoch``.
            stop: Batch after the last.
            per_epoch: Batches used of every epoch.

        Raises:
            ValueError: An epoch has fewer batches than ``per_epoch``, or the range runs backwards.
        """
        if not 0 <= start <= stop:
            raise ValueError(f"cannot start at batch {start} of {stop}")
        if not 0 < per_epoch <= len(self):
            raise ValueError(f"cannot use {per_epoch} batches per epoch: an epoch has {len(self)}")
        self._range, self._per_epoch = range(start, stop), per_epoch

    def __len__(self) -> int:
        """Batches of a full epoch, whatever range is selected."""
        return self._num_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield the selected batches."""
        batches, per_epoch = self._range, self._per_epoch
        order, current = torch.zeros(0), -1
        for number in batches:
            epoch, batch = divmod(number, per_epoch)
            if epoch != current:
                order, current = self._order(epoch), epoch
            first = batch * self.global_batch + self.rank * self.batch_size
            indices = torch.arange(first, first + self.batch_size) % self.num_samples
            yield [SampleKey(epoch, index) for index in order[indices].tolist()]

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.num_samples)
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        return torch.randperm(self.num_samples, generator=generator)


class EvalBatchSampler(Sampler[list[SampleKey]]):
    """Every sample exactly once over all ranks.

    Rank ``r`` gets samples ``r, r + world_size, ...`` in order. No sample is repeated, so the
    numbers of batches and samples of the ranks may differ by one: reduce sums and counts, not
    means, and do not communicate per batch.

    Attributes:
        max_batch_size: Samples in a full batch; the same on every rank.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        """See the class; ``batch_size`` is per rank."""
        self.batch_size = batch_size
        self.max_batch_size = min(batch_size, num_samples)
        self._indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        """Batches of this rank."""
        return -(-len(self._indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield the batches of this rank; the last may be smaller."""
        for first in range(0, len(self._indices), self.batch_size):
            yield [SampleKey(0, i) for i in self._indices[first : first + self.batch_size]]
