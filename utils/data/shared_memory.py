"""A pool of shared-memory blocks that loader workers fill with batches.

By default PyTorch allocates shared memory for every batch: the system zeroes each page, maps it in
two processes and frees it again. :class:`SharedMemoryPool` allocates a few blocks once, before the
workers start, and reuses them: :meth:`~SharedMemoryPool.acquire` a block with the keys of a batch,
:func:`stack_into` it in the worker, :meth:`~SharedMemoryPool.attach` to its tensors in the main
process. A block is free again when the last of these tensors is garbage-collected.
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
_pools: weakref.WeakValueDictionary[int, SharedMemoryPool] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Block:
    """A block of a pool, for other processes."""

    pool: int
    index: int


@dataclass(frozen=True)
class TensorSlot:
    """Position and type of a tensor in a block."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def view_of(self, block: Tensor) -> Tensor:
        """The tensor, as a view of the bytes of the block."""
        return block[self.offset : self.offset + self.nbytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class SharedTensors:
    """Handle of tensors in a block: sent between processes instead of the tensors."""

    block: Block
    slots: Mapping[str, TensorSlot]

    def attach(self) -> dict[str, Tensor]:
        """The tensors, in the process that made the pool; see :meth:`SharedMemoryPool.attach`."""
        return _pools[self.block.pool].attach(self)


class SharedMemoryPool:
    """Blocks of one size; made before the loader's workers, which inherit them."""

    def __init__(self, num_blocks: int, num_bytes: int, max_tensors: int = 64) -> None:
        """Reserve the blocks; the system allocates their pages at the first write.

        Args:
            num_blocks: Number of blocks.
            num_bytes: Size of all tensors of a batch.
            max_tensors: Number of tensors per batch, at most.
        """
        num_bytes += max_tensors * _ALIGNMENT
        self.block_size = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, num_blocks * self.block_size)
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._free = deque(range(num_blocks))
        self._acquired: set[int] = set()
        _pools[id(self)] = self

    def acquire(self) -> Block | None:
        """Reserve a block for a batch that a worker will make; ``None`` if none is free."""
        if not self._free:
            return None
        index = self._free.popleft()
        self._acquired.add(index)
        return Block(id(self), index)

    def reclaim(self) -> None:
        """Free acquired blocks whose batches never arrived; call it only while workers are idle."""
        self._free.extend(self._acquired)
        self._acquired.clear()

    def attach(self, shared: SharedTensors) -> dict[str, Tensor]:
        """Tensors of a filled block, which is freed when none of them is left."""
        index = shared.block.index
        # The storages reference this object, so it lives exactly as long as the last tensor.
        owner = (ctypes.c_ubyte * self.block_size).from_buffer(
            self._memory, index * self.block_size
        )
        self._acquired.discard(index)
        weakref.finalize(owner, self._free.append, index).atexit = False
        block = torch.frombuffer(owner, dtype=torch.uint8)
        return {name: slot.view_of(block) for name, slot in shared.slots.items()}

    def stack(self, index: int, lists: Mapping[str, Sequence[Tensor]]) -> SharedTensors | None:
        """Stack each list of tensors in a block; ``None`` if they do not fit."""
        slots, end = {}, 0
        for name, tensors in lists.items():
            slot = TensorSlot(end, (len(tensors), *tensors[0].shape), tensors[0].dtype)
            slots[name] = slot
            end += -(-slot.nbytes // _ALIGNMENT) * _ALIGNMENT
        if end > self.block_size:
            return None
        block = self._bytes[index * self.block_size : (index + 1) * self.block_size]
        for name, tensors in lists.items():
            torch.stack(list(tensors), out=slots[name].view_of(block))
        return SharedTensors(Block(id(self), index), slots)


class BatchKeys(list[SampleKey]):
    """Keys of the samples of a batch, and the block to stack them in."""

    def __init__(self, keys: Iterable[SampleKey], block: Block | None) -> None:
        """See the class."""
        super().__init__(keys)
        self.block = block

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the block, too."""
        return BatchKeys, (list(self), self.block)


class PooledBatchSampler(Sampler[list[SampleKey]]):
    """Batches of a sampler, each with a block of a pool."""

    def __init__(self, sampler: Sampler[list[SampleKey]], pool: SharedMemoryPool) -> None:
        """See the class."""
        self.sampler, self.pool = sampler, pool

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield :class:`BatchKeys`; workers are idle when the loader asks for the first one."""
        self.pool.reclaim()
        for keys in self.sampler:
            yield BatchKeys(keys, self.pool.acquire())


def stack_into(block: Block, lists: Mapping[str, Sequence[Tensor]]) -> SharedTensors | None:
    """Stack each list of tensors in a block, in a worker.

    Returns:
        ``None`` if the tensors do not fit, or if the process did not inherit the pool.
    """
    pool = _pools.get(block.pool)
    return None if pool is None else pool.stack(block.index, lists)
