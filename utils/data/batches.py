"""Samples and batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from utils.data.samplers import GlobalBatchSampler
from utils.data.shared_memory import Block, Placed, fill
from utils.logs.errors import RunError, bullet_list

_LAST_PROBLEMS = 3


class Sample(NamedTuple):
    """One sample: tensors by modality (see :class:`JointTransform`) and ``sub-folder/name``.

    Of modalities that it lacks (``absent``) the tensors are without content.
    """

    images: dict[str, Tensor]
    name: str
    absent: tuple[str, ...] = ()


class BadSample(NamedTuple):
    """A sample left out of training: ``sub-folder/name``, and a message with the file's path."""

    name: str
    problem: str


@dataclass
class Batch:
    """Stacked samples.

    Attributes:
        images: By modality, in storage dtype: images ``(B, C, h, w)``, labels ``(B, h, w)``. Empty
            if every sample is bad.
        names: ``sub-folder/name`` of every sample.
        bad: The samples that were left out.
        rows: Places of the other samples in the whole batch; ``None`` if none was left out.
        present: ``(B,)`` bool by modality, of those that some sample lacks: which samples have it.
        placed: Where ``images`` lie, in a loader's process that was given a block for them.
    """

    images: dict[str, Tensor]
    names: list[str]
    bad: list[BadSample] = field(default_factory=list)
    rows: tuple[int, ...] | None = None
    present: dict[str, Tensor] = field(default_factory=dict)
    placed: Placed | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: what lies in a block is not sent."""
        rest = (self.names, self.bad, self.rows, self.present)
        return (
            (Batch, (self.images, *rest)) if self.placed is None else (_taken, (self.placed, *rest))
        )

    def __len__(self) -> int:
        """Number of samples, without the bad ones."""
        return len(self.names)

    @property
    def whole_size(self) -> int:
        """Number of samples, with the bad ones."""
        return len(self.names) + len(self.bad)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``; copies from pinned memory overlap with computation."""
        moved, present = (
            {k: v.to(device, non_blocking=True) for k, v in tensors.items()}
            for tensors in (self.images, self.present)
        )
        return replace(self, images=moved, present=present, placed=None)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by the DataLoader)."""
        pinned = {k: v.pin_memory() for k, v in self.images.items()}
        return replace(self, images=pinned, placed=None)


def _taken(placed: Placed, *rest: Any) -> Batch:
    return Batch(placed.tensors(), *rest)


class Samples(list[Sample | BadSample]):
    """Samples of a batch, and the block for them."""

    block: Block | None = None


def collate(samples: Sequence[Sample | BadSample]) -> Batch:
    """Stack samples; bad ones are listed apart, and nothing takes their place."""
    good = {row: s for row, s in enumerate(samples) if isinstance(s, Sample)}
    bad = [s for s in samples if isinstance(s, BadSample)]
    keys = next(iter(good.values())).images if good else ()
    lists = {key: [s.images[key] for s in good.values()] for key in keys}
    block = samples.block if isinstance(samples, Samples) else None
    placed = fill(block, lists) if lists else None
    images = {} if placed else {key: _stack(tensors) for key, tensors in lists.items()}
    lacking = {key for s in good.values() for key in s.absent}
    present = {
        k: torch.tensor([k not in s.absent for s in good.values()]) for k in keys if k in lacking
    }
    names = [s.name for s in good.values()]
    return Batch(images, names, bad, tuple(good) if bad else None, present, placed)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """``torch.stack``, without a block; in a worker into new memory shared with the main process.

    Torch would move the batch there later, in another thread. That is one more copy, and
    with glibc 2.36 the workers' memory grew from batch to batch (docs/LOG.md).
    """
    if get_worker_info() is None:
        return torch.stack(list(tensors))
    first = tensors[0]
    shape = (len(tensors), *first.shape)
    size = math.prod(shape) * first.element_size()
    storage: Any = torch.UntypedStorage
    shared = storage._new_shared(size, device="cpu")
    out = torch.empty(0, dtype=first.dtype).set_(shared).view(shape)
    return torch.stack(list(tensors), out=out)


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


class BadSamples:
    """The bad samples that a run has met, on any of its processes.

    Attributes:
        names: Of the different samples met; the caller's set, which checkpoints hold.
    """

    def __init__(self, limit: int, say: Callable[[str], None], names: set[str]) -> None:
        """Go on from what was met before.

        Args:
            limit: Different bad samples allowed.
            say: Takes lines for the log.
            names: Samples met before; changed in place.
        """
        self.limit, self.say, self.names = limit, say, names
        self._last: list[str] = []

    @property
    def count(self) -> int:
        """Different samples met."""
        return len(self.names)

    def add(self, bad: Sequence[BadSample]) -> int:
        """Say those that have not been met before; returns their number."""
        before = self.count
        for name, problem in bad:
            if name in self.names:
                continue
            self.names.add(name)
            self._last = [*self._last, problem][-_LAST_PROBLEMS:]
            self.say(f"left out bad sample {self.count}, {name}: {problem}")
        return self.count - before

    def check(self) -> None:
        """Stop the run if there are too many.

        Raises:
            RunError: There are; names the last ones met.
        """
        if self.count <= self.limit:
            return
        last = f"The last ones:\n{bullet_list(self._last)}\n" if self._last else ""
        raise RunError(
            f"{self.count} training samples are bad, more than max_bad_samples {self.limit}. {last}"
            "Mend the files, see the log for all of them, or raise --max_bad_samples."
        )
