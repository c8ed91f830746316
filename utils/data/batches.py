"""Samples and batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from utils.data.shared_memory import Block, Placed, fill


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
