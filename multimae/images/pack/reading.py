"""Read packed modality folders: random access, with memory for one image at a time."""

from __future__ import annotations

import math
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from multimae.images.index.listing import Stamp, stamp_of
from multimae.images.pack import PACK_FILE, AnyPath
from multimae.images.pack.index_check import check_index
from multimae.images.pack.layout import (
    DTYPES,
    FILES,
    INDEX_FILE,
    NAMES_FILE,
    SHARD,
    Kind,
    file_name,
    read_contents,
    record_checksum,
    shape_of,
)
from multimae.images.pack.stored_array import StoredArray
from multimae.images.pixels import Array, ImageError
from multimae.specs.errors import UserError, bullet_list
from multimae.weights.atomic import DIGEST_BYTES

PNG = b"\x89PNG\r\n\x1a\n"
OPEN_FILES = 64
"""Maximum number of shards that a process keeps open."""


class PackedFolder:
    """The files of one modality; nothing is memory-mapped (see :class:`StoredArray`).

    Attributes:
        folder: Folder of the shards.
        contents: ``pack.json``.
        names: ``sub-folder/name.extension`` as bytes, sorted.
    """

    def __init__(self, folder: AnyPath, *, check_first: int | None = None) -> None:
        """Open the index; sizes of all shards are checked.

        Args:
            folder: Folder of the shards.
            check_first: Number of files to check; all, with the checksums of the index, if
                ``None``.

        Raises:
            UserError: Files are missing, damaged or of the wrong size.
        """
        self.folder = folder
        self.contents = read_contents(folder)
        self._check_sizes()
        self._records = _open_array(self._index_file(INDEX_FILE))
        self.names = _open_array(self._index_file(NAMES_FILE))
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()
        self._lock = threading.Lock()
        try:
            check_index(self.contents, self._records, self.names, check_first)
        except (ValueError, OSError) as err:
            raise UserError(
                f"{folder / INDEX_FILE} and {NAMES_FILE} are not an index of "
                f"{self.contents.count} files ({err}). Copy the pack again, or pack the data again."
            ) from err

    def stamps(self) -> list[Stamp]:
        """Stamps of ``pack.json`` and the index; behind a URL, of the cached index."""
        files = [self._index_file(name) for name in (INDEX_FILE, NAMES_FILE)]
        if isinstance(self.folder, Path):
            files.append(self.folder / PACK_FILE)
        return [stamp_of(os.fsencode(path)) for path in files]

    def __len__(self) -> int:
        """Number of files."""
        return len(self._records)

    def __getstate__(self) -> dict[str, object]:
        """Drop open files; a spawned worker opens its own."""
        return {**self.__dict__, "_open": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a lock."""
        self.__dict__.update(state, _lock=threading.Lock())

    def record(self, index: int) -> np.void:
        """Position and kind of a file.

        Raises:
            ImageError: The index cannot be read.
        """
        try:
            found: np.void = self._records[index]
        except OSError as err:
            raise ImageError(f"{self.folder / INDEX_FILE}: cannot be read ({err}).") from err
        return found

    def read(self, index: int) -> bytes | Array:
        """Bytes of a file, or its pixels.

        Args:
            index: Index in ``names``.

        Raises:
            ImageError: The record cannot be read, its checksum is wrong, or it has too many pixels.
        """
        record = self.record(index)
        kind = Kind(int(record["kind"]))
        values = self._record_bytes(index)
        if kind is Kind.FILE:
            return values.tobytes()
        if self.contents.version == 1 and self._has_lost_values(index):
            return self.original(index)
        shape = shape_of(kind, int(record["height"]), int(record["width"]))
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and shape[0] * shape[1] > limit:  # as of a file
            raise ImageError(f"{self.folder / self.name(index)}: more than {limit} pixels.")
        if record["packed"]:
            size = math.prod(shape) * DTYPES[kind].itemsize
            where = f"{self._shard(index)}: {self.name(index)}"
            values = _unpack(values, size, DTYPES[kind].itemsize, where)
        pixels: Array = values.view(DTYPES[kind]).reshape(shape)
        return pixels

    def prefetch(self, indices: Iterable[int]) -> None:
        """Nothing to do: local files are read when needed."""

    def original(self, index: int) -> bytes:
        """Original bytes of a file.

        Raises:
            ImageError: The original is missing, cannot be read or is damaged.
        """
        record = self.record(index)
        if record["kind"] == Kind.FILE:
            data = bytes(self.read(index))
        elif not record["file_size"]:
            raise ImageError(
                f"{self.folder} was packed with --no_files: it has the pixels of "
                f"{self.name(index)}, not the original file."
            )
        else:
            name = file_name(int(record["shard"]), FILES)
            offset, size = int(record["file_offset"]), int(record["file_size"])
            data = self._bytes(name, offset, size).tobytes()
        if blake2b(data, digest_size=DIGEST_BYTES).digest() != record["digest"].tobytes():
            raise ImageError(f"{self.folder / self.name(index)} is damaged. Copy the pack again.")
        return data

    def _has_lost_values(self, index: int) -> bool:
        """Whether version 1 stored less than the file had: TIFF pages, bits of a PNG."""
        record, name = self.record(index), self.name(index).lower()
        if not name.endswith((".png", ".tif", ".tiff")):
            return False
        if not record["file_size"]:
            if name.endswith(".png"):
                return False  # unknown
            raise ImageError(
                f"{self.folder / self.name(index)}: packed by a version that kept one page of a "
                "TIFF file. Pack the data again."
            )
        part = file_name(int(record["shard"]), FILES)
        head = self._bytes(part, int(record["file_offset"]), min(64, int(record["file_size"])))
        return not is_plain_png(head.tobytes())

    def name(self, index: int) -> str:
        """``sub-folder/name.extension``."""
        return os.fsdecode(self.names[index])

    def _record_bytes(self, index: int) -> npt.NDArray[np.uint8]:
        """Bytes of a record, compared with their checksum."""
        record = self.record(index)
        offset, size = int(record["offset"]), int(record["size"])
        values = self._bytes(file_name(int(record["shard"]), SHARD), offset, size)
        if not self._is_intact(index, values):
            raise self._wrong_checksum(index)
        return values

    def _is_intact(self, index: int, values: npt.NDArray[np.uint8]) -> bool:
        old = self.contents.version == 1
        found = zlib.crc32(values.data) if old else record_checksum(values)
        return found == int(self.record(index)["crc"])

    def _wrong_checksum(self, index: int) -> ImageError:
        return ImageError(
            f"{self._shard(index)}: wrong checksum of {self.name(index)}. Copy the shard again, or "
            "pack the data again; tools/pack_dataset.py --verify finds all damage."
        )

    def _shard(self, index: int) -> AnyPath:
        """Shard of a record."""
        return self.folder / file_name(int(self.record(index)["shard"]), SHARD)

    def _bytes(self, file: str, offset: int, size: int) -> npt.NDArray[np.uint8]:
        values = np.empty(size, np.uint8)
        try:
            with self._lock:  # another thread may close the file
                read = os.preadv(self._stream(file).fileno(), [values.data], offset) if size else 0
        except OSError as err:
            raise ImageError(f"{self.folder / file}: cannot be read ({err}).") from err
        if read < size:
            raise ImageError(
                f"{self.folder / file}: ends {size - read} bytes too early. Copy the shard again."
            )
        return values

    def _index_file(self, name: str) -> Path:
        """Local path of a file of the index."""
        return Path(f"{self.folder}/{name}")

    def _check_sizes(self) -> None:
        problems = []
        for part in self.contents.files:
            path = Path(f"{self.folder}/{part.name}")
            size = path.stat().st_size if path.is_file() else None
            if size is None and not path.suffix.endswith(FILES):
                problems.append(f"{path}: missing")
            elif size is not None and size != part.size:
                problems.append(f"{path}: {size} bytes instead of {part.size}")
        if problems:
            raise UserError(
                f"the pack in {self.folder} is not complete:\n{bullet_list(problems)}\nCopy these "
                "files again, or pack the data again."
            )

    def _stream(self, file: str) -> BinaryIO:
        stream = self._open.pop(file, None)
        if stream is None:
            stream = open(f"{self.folder}/{file}", "rb", buffering=0)  # noqa: SIM115
            if len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open[file] = stream
        return stream


def is_plain_png(head: bytes) -> bool:
    """Whether a file begins as a grey PNG of 8 or 16 bits, or an RGB PNG of 8 bits."""
    return head.startswith(PNG) and tuple(head[24:26]) in ((8, 0), (16, 0), (8, 2))


def pack_planes(values: Array) -> bytes:
    """Compress pixels with zlib: all low bytes, then all high bytes."""
    planes = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    planes = planes.reshape(-1, values.dtype.itemsize).T
    return zlib.compress(planes.tobytes(), 1)


def _unpack(
    packed: npt.NDArray[np.uint8], size: int, width: int, where: str
) -> npt.NDArray[np.uint8]:
    """Inflate to at most ``size`` bytes, which are planes of ``width``-byte values."""
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(packed.data, size + 1)
        if len(data) != size or not inflate.eof:
            raise ValueError(f"it does not inflate to {size} bytes")
        planes = np.frombuffer(data, np.uint8).reshape(width, -1)
    except (zlib.error, ValueError) as err:
        raise ImageError(f"{where} is damaged ({err}). Copy the shard again.") from err
    return np.ascontiguousarray(planes.T).reshape(-1)


def _open_array(path: Path) -> StoredArray:
    try:
        return StoredArray(path)
    except (OSError, ValueError, EOFError) as err:
        raise UserError(f"{path}: cannot be read ({err}). Pack the data again.") from err
