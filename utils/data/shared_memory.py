"""Memory that loader processes fill and the training reads, used again and again.

Torch makes shared memory anew for every batch: the system clears each page of it, maps it in two
processes and throws it away. Here a few blocks are made once, before the processes are started. A
batch is asked for together with a block that is free, and the block is free again when the last
tensor of the batch is gone.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from utils.data.samplers import SampleKey

_ALIGNMENT = 64
_pools: weakref.WeakValueDictionary[int, Blocks] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Place:
    """A tensor in a block."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Block:
    """One of a pool's blocks."""

    pool: int
    number: int


@dataclass(frozen=True)
class Placed:
    """Tensors in a block: what a process tells another one instead of sending them."""

    block: Block
    places: Mapping[str, Place]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors; the block is kept until none of them is left.

        In the process that made the pool.
        """
        return _pools[self.block.pool].receive(self.block.number, self.places)


class Blocks:
    """A pool of blocks of one size; made before the loader's processes, which inherit it."""

    def __init__(self, count: int, size: int, num_tensors: int = 64) -> None:
        """Memory is taken as blocks are first written to.

        Args:
            count: Blocks.
            size: Bytes of the tensors of a batch.
            num_tensors: How many those are at most.
        """
        size += num_tensors * _ALIGNMENT
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, count * self.size)
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._free = deque(range(count))
        self._asked: set[int] = set()
        _pools[id(self)] = self

    def ask(self) -> Block | None:
        """A free block for a batch that a process is about to make, if there is one."""
        try:
            number = self._free.popleft()
        except IndexError:
            return None
        self._asked.add(number)
        return Block(id(self), number)

    def forget(self) -> None:
        """Take back the blocks of batches that were asked for and never came.

        Only when no process is at work on one.
        """
        self._free.extend(self._asked)
        self._asked.clear()

    def receive(self, number: int, places: Mapping[str, Place]) -> dict[str, Tensor]:
        """Tensors of a block that was filled."""
        start = number * self.size
        # Storages hold this object, whose end is therefore the end of the last tensor.
        held = (ctypes.c_ubyte * self.size).from_buffer(self._memory, start)
        self._asked.discard(number)
        weakref.finalize(held, self._free.append, number).atexit = False
        whole = torch.frombuffer(held, dtype=torch.uint8)
        return {name: _at(whole, place) for name, place in places.items()}

    def fill(self, number: int, lists: Mapping[str, Sequence[Tensor]]) -> Placed | None:
        """Stack each list of tensors in a block; ``None`` if they do not fit."""
        places, end = {}, 0
        for name, tensors in lists.items():
            place = Place(end, (len(tensors), *tensors[0].shape), tensors[0].dtype)
            places[name] = place
            end += -(-place.size // _ALIGNMENT) * _ALIGNMENT
        if end > self.size:
            return None
        whole = self._bytes[number * self.size : (number + 1) * self.size]
        for name, tensors in lists.items():
            torch.stack(list(tensors), out=_at(whole, places[name]))
        return Placed(Block(id(self), number), places)


def _at(whole: Tensor, place: Place) -> Tensor:
    part = whole[place.offset : place.offset + place.size]
    return part.view(place.dtype).view(place.shape)


class Keys(list[SampleKey]):
    """The keys of a batch, and the block for it."""

    def __init__(self, keys: Iterable[SampleKey], block: Block | None) -> None:
        """See the class."""
        super().__init__(keys)
        self.block = block

    def __reduce__(self) -> tuple[Any, ...]:
        """For a loader's process."""
        return Keys, (list(self), self.block)


class WithBlocks(Sampler[list[SampleKey]]):
    """The batches of a sampler, each with a block."""

    def __init__(self, sampler: Sampler[list[SampleKey]], blocks: Blocks) -> None:
        """See the class."""
        self.sampler, self.blocks = sampler, blocks

    def __len__(self) -> int:
        """Batches."""
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """The first one is asked for when no process is at work: the loader waits for that."""
        self.blocks.forget()
        for keys in self.sampler:
            yield Keys(keys, self.blocks.ask())


def fill(block: Block | None, lists: Mapping[str, Sequence[Tensor]]) -> Placed | None:
    """Stack each list of tensors in a block, in a loader's process.

    Returns:
        ``None`` where that cannot be: there was no free block, the tensors are larger than it, or
        the process did not inherit its memory.
    """
    pool = None if block is None else _pools.get(block.pool)
    return None if block is None or pool is None else pool.fill(block.number, lists)
