"""Samples, batches, the batches of a run in order, and the bad samples it has met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from multimae.specs.errors import RunError, bullet_list
from utils.data.samplers import GlobalBatchSampler

if TYPE_CHECKING:
    from utils.data.shared_memory import Block, SharedTensors

_NUM_LISTED = 3  # problems in the error about too many bad samples


class Sample(NamedTuple):
    """One sample.

    Attributes:
        images: Tensors by modality, see :class:`JointTransform`.
        name: ``sub-folder/name``.
        absent: Modalities that the sample lacks; their tensors are placeholders.
    """

    images: dict[str, Tensor]
    name: str
    absent: tuple[str, ...] = ()


class BadSample(NamedTuple):
    """A sample that cannot be used: ``sub-folder/name``, and a message with the file's path."""

    name: str
    problem: str


class Samples(list[Sample | BadSample]):
    """Samples of a batch, and the shared-memory block to stack them in."""

    block: Block | None = None


@dataclass
class Batch:
    """Stacked samples.

    Attributes:
        images: By modality, in storage dtype: images ``(B, C, h, w)``, labels ``(B, h, w)``. Empty
            if every sample is bad.
        names: ``sub-folder/name`` of every sample.
        bad: Bad samples, which are not in ``images`` and ``names``.
        sample_indices: Indices of the good samples among all; ``None`` if no sample is bad.
        present: Bool ``(B,)`` for each modality that some sample lacks: which samples have it.
        shared: Handle of ``images`` in a shared-memory block; only in a loader worker.
    """

    images: dict[str, Tensor]
    names: list[str]
    bad: list[BadSample] = field(default_factory=list)
    sample_indices: tuple[int, ...] | None = None
    present: dict[str, Tensor] = field(default_factory=dict)
    shared: SharedTensors | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the handle instead of tensors in shared memory."""
        rest = (self.names, self.bad, self.sample_indices, self.present)
        if self.shared is not None:
            return _attached, (self.shared, *rest)
        return Batch, (self.images, *rest)

    def __len__(self) -> int:
        """Number of good samples."""
        return len(self.names)

    @property
    def full_size(self) -> int:
        """Number of samples, bad ones included."""
        return len(self.names) + len(self.bad)

    def always_present(self, names: Iterable[str]) -> Batch:
        """With entries of ``present`` for modalities ``names``, also where no sample lacks them."""
        present = dict(self.present)
        for name in set(names) - present.keys():
            image = self.images[name]
            present[name] = torch.ones(len(image), dtype=torch.bool, device=image.device)
        return replace(self, present={name: present[name] for name in sorted(present)})

    def to(self, device: torch.device | str) -> Batch:
        """Copy to ``device``; copies from pinned memory overlap with computation."""
        moved, present = (
            {k: v.to(device, non_blocking=True) for k, v in tensors.items()}
            for tensors in (self.images, self.present)
        )
        return replace(self, images=moved, present=present, shared=None)

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory (called by the DataLoader)."""
        pinned = {k: v.pin_memory() for k, v in self.images.items()}
        return replace(self, images=pinned, shared=None)


def _attached(shared: SharedTensors, *rest: Any) -> Batch:
    return Batch(shared.attach(), *rest)


def collate(samples: Sequence[Sample | BadSample]) -> Batch:
    """Stack the good samples and list the bad ones."""
    good = {i: s for i, s in enumerate(samples) if isinstance(s, Sample)}
    bad = [s for s in samples if isinstance(s, BadSample)]
    keys = next(iter(good.values())).images if good else ()
    lists = {key: [s.images[key] for s in good.values()] for key in keys}
    block = samples.block if isinstance(samples, Samples) else None
    shared = None
    if block and lists:
        from utils.data.shared_memory import stack_into

        shared = stack_into(block, lists)
    images = {} if shared else {key: _stack(tensors) for key, tensors in lists.items()}
    absent = {key for s in good.values() for key in s.absent}
    present = {k: torch.tensor([k not in s.absent for s in good.values()]) for k in sorted(absent)}
    names = [s.name for s in good.values()]
    return Batch(images, names, bad, tuple(good) if bad else None, present, shared)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """``torch.stack``; in a loader worker directly into new shared memory.

    PyTorch would copy the batch there later, in another thread, with which the memory of workers
    grows from batch to batch (glibc 2.36).
    """
    if get_worker_info() is None:
        return torch.stack(list(tensors))
    out = torch.empty(len(tensors), *tensors[0].shape, dtype=tensors[0].dtype)
    out.share_memory_()  # type: ignore[no-untyped-call]
    return torch.stack(list(tensors), out=out)


class BatchStream:
    """Iterator over the batches of a run, across epochs.

    Workers prepare batches of the next epoch while the last one is evaluated and saved; a new
    iterator per epoch would wait for its first batch each time.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        sampler: GlobalBatchSampler,
        batches_per_epoch: int,
        num_batches: int,
    ) -> None:
        """Read nothing yet.

        Args:
            loader: The loader.
            sampler: Batch sampler of the loader.
            batches_per_epoch: Batches used of every epoch.
            num_batches: Batches of the run; workers prepare none beyond them.
        """
        self.loader, self.sampler = loader, sampler
        self.batches_per_epoch, self.num_batches = batches_per_epoch, num_batches
        self._batches: Iterator[Batch] = iter(())
        self._next = -1

    def seek(self, batch: int) -> BatchStream:
        """Make ``batch`` of the run the next one, and return the stream.

        Elsewhere than at the current position (after a resume or a rollback), prepared batches are
        discarded.
        """
        if batch != self._next:
            self.sampler.set_range(batch, self.num_batches, self.batches_per_epoch)
            self._batches, self._next = iter(self.loader), batch
        return self

    def __iter__(self) -> BatchStream:
        """Return the stream, which continues at its current position."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch; none before :meth:`seek` was called."""
        batch = next(self._batches)
        self._next += 1
        return batch


class BadSamples:
    """Bad samples that a run has met, on any of its processes.

    Attributes:
        names: Names of the bad samples; the caller's set, which checkpoints store.
    """

    def __init__(self, limit: int, log: Callable[[str], None], names: set[str]) -> None:
        """Continue from the samples met before a resume.

        Args:
            limit: Bad samples allowed.
            log: Writes a line to the log.
            names: Samples met before; updated in place.
        """
        self.limit, self.log, self.names = limit, log, names
        self._last: list[str] = []

    @property
    def count(self) -> int:
        """Number of distinct bad samples."""
        return len(self.names)

    def add(self, bad: Sequence[BadSample]) -> int:
        """Log samples that have not been met before; return their number."""
        before = self.count
        for name, problem in bad:
            if name in self.names:
                continue
            self.names.add(name)
            self._last = [*self._last, problem][-_NUM_LISTED:]
            self.log(f"skipped bad sample {self.count}, {name}: {problem}")
        return self.count - before

    def check(self) -> None:
        """Raise a RunError that names the last bad samples if there are more than the limit."""
        if self.count <= self.limit:
            return
        last = f"The last ones:\n{bullet_list(self._last)}\n" if self._last else ""
        raise RunError(
            f"{self.count} training samples are bad, more than max_bad_samples {self.limit}. {last}"
            "Fix the files (the log lists all of them), or raise --max_bad_samples."
        )
