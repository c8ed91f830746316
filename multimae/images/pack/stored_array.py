"""Arrays of ``.npy`` files, read a part at a time.

They are not memory-mapped: mapped pages would count as memory of every process that reads them.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK = 2**14


class StoredArray(Sequence[Any]):
    """A one-dimensional array on disk.

    Attributes:
        path: The file.
        dtype: Type of the elements.
        header: Bytes of the file before them.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not such an array.
        """
        mapped = np.lib.format.open_memmap(path, mode="r")
        if mapped.ndim != 1 or not mapped.dtype.itemsize:
            raise ValueError(f"it holds {mapped.dtype} of shape {mapped.shape}")
        self.path, self.dtype, self._len = path, mapped.dtype, len(mapped)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self.header = os.pread(self._file, int(mapped.offset), 0)

    def __reduce__(self) -> tuple[type[StoredArray], tuple[Path]]:
        """A spawned worker opens the file itself."""
        return type(self), (self.path,)

    def __len__(self) -> int:
        """Number of elements."""
        return self._len

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        """One element."""
        if not 0 <= index < self._len:
            raise IndexError(index)
        return self.read(index, index + 1)[0]

    def __iter__(self) -> Iterator[Any]:
        """All elements."""
        for block in self.blocks():
            yield from block.tolist() if self.dtype.kind == "S" else block

    def blocks(self, stop: int | None = None) -> Iterator[npt.NDArray[Any]]:
        """Elements in order, some at a time."""
        end = len(self) if stop is None else min(stop, len(self))
        for first in range(0, end, _BLOCK):
            yield self.read(first, min(first + _BLOCK, end))

    def read(self, first: int, stop: int) -> npt.NDArray[Any]:
        """Elements of a range.

        Raises:
            OSError: They cannot be read.
        """
        values = np.empty(max(0, min(stop, len(self)) - first), self.dtype)
        start = len(self.header) + first * self.dtype.itemsize
        if os.preadv(self._file, [values.view(np.uint8).data], start) < values.nbytes:
            raise OSError(f"{self.path} ends too early")
        return values
