"""Image files that are written row by row: PNG and ``.npy``; GeoTIFF is in ``rasters.py``."""

from __future__ import annotations

import struct
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from multimae.images.pixels import Array
from multimae.nn.tokens import Size
from multimae.weights.atomic import atomic_file

_COMPRESSION = 4
_GREY, _RGB, _PALETTE = 0, 2, 3
_FILTER_NONE, _FILTER_UP = 0, 2


class RowFile(Protocol):
    """A file of one image, which gets its final name when it is complete."""

    def write(self, rows: Array) -> None:
        """Append ``(h, W)`` or ``(h, W, C)``."""

    def close(self, *, keep: bool = True) -> None:
        """Finish the file; delete it unless ``keep``."""


class _Stream:
    """An atomic file that is open across calls."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stack = ExitStack()
        self.stream = self._stack.enter_context(atomic_file(path))

    def _finish(self, keep: bool) -> None:
        if keep:
            self._stack.close()
            return
        dropped = _Dropped()
        self._stack.__exit__(_Dropped, dropped, None)


class _Dropped(Exception):
    """Makes :func:`atomic_file` delete its file."""


class NpyRows(_Stream):
    """An array of ``(H, W)`` or ``(H, W, C)``."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """Write the header; ``shape``: of the whole array."""
        super().__init__(path)
        kind = np.dtype(dtype)
        header: dict[str, Any] = {
            "descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape,
        }  # fmt: skip
        np.lib.format.write_array_header_1_0(self.stream, header)

    def write(self, rows: Array) -> None:
        """Append rows."""
        self.stream.write(np.ascontiguousarray(rows).data)

    def close(self, *, keep: bool = True) -> None:
        """Finish the file; delete it unless ``keep``."""
        self._finish(keep)


class PngRows(_Stream):
    """A PNG of 8-bit ids with a palette, grey of 8 or 16 bits, or 8-bit RGB."""

    def __init__(
        self,
        path: Path,
        size: Size,
        dtype: npt.DTypeLike,
        *,
        channels: int = 1,
        palette: Array | None = None,
    ) -> None:
        """Write the header.

        Args:
            path: Final name.
            size: ``(H, W)``.
            dtype: ``uint8`` or ``uint16``.
            channels: 1 or 3.
            palette: ``(256, 3)`` colours of ids.
        """
        super().__init__(path)
        colours = _PALETTE if palette is not None else _RGB if channels == 3 else _GREY
        bits = 8 * np.dtype(dtype).itemsize
        self.stream.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], bits, colours, 0, 0, 0))
        if palette is not None:
            self._chunk(b"PLTE", np.ascontiguousarray(palette, np.uint8).tobytes())
        self._zip = zlib.compressobj(_COMPRESSION)
        self._above: Array | None = None
        self._filter = _FILTER_NONE if palette is not None else _FILTER_UP

    def write(self, rows: Array) -> None:
        """Append rows."""
        wide = rows.astype(rows.dtype.newbyteorder(">"))
        flat = np.ascontiguousarray(wide).view(np.uint8).reshape(len(rows), -1)
        lines = np.empty((len(flat), flat.shape[1] + 1), np.uint8)
        lines[:, 0], lines[:, 1:] = self._filter, flat
        if self._filter == _FILTER_UP:
            if self._above is not None:
                lines[0, 1:] -= self._above
            lines[1:, 1:] -= flat[:-1]
            self._above = flat[-1].copy()
        self._data(self._zip.compress(lines.data))

    def close(self, *, keep: bool = True) -> None:
        """Finish the file; delete it unless ``keep``."""
        if keep:
            self._data(self._zip.flush())
            self._chunk(b"IEND", b"")
        self._finish(keep)

    def _data(self, data: bytes) -> None:
        if data:
            self._chunk(b"IDAT", data)

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self.stream.write(struct.pack(">I", len(data)) + kind + data)
        self.stream.write(struct.pack(">I", zlib.crc32(kind + data)))
