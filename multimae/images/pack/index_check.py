"""Check the index of a pack, a block at a time."""

from __future__ import annotations

import os
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae.images.pack import PACK_FILE
from multimae.images.pack.layout import (
    DTYPES,
    FILES,
    INDEX_FILE,
    NAMES_FILE,
    RECORD,
    SHARD,
    Contents,
    Kind,
    Records,
    file_name,
)
from multimae.images.pack.stored_array import StoredArray
from multimae.weights.atomic import DIGEST_BYTES, Written

_DOT, _SLASH = b"./"
_NOT_A_NAME = (b"//", b"/./", b"/../")
_MAX_INFLATION = 1040  # DEFLATE shrinks at most 1032 times
_MAX_SIZE = 2**62  # sums of two sizes fit 64 bits

_BYTES_PER_PIXEL = np.zeros(256)  # 0: unknown kind
_BYTES_PER_PIXEL[Kind.FILE] = 1
for _kind, _dtype in DTYPES.items():
    _BYTES_PER_PIXEL[_kind] = _dtype.itemsize * (3 if _kind is Kind.RGB else 1)

Names = npt.NDArray[np.bytes_]


def check_index(
    contents: Contents, records: StoredArray, names: StoredArray, stop: int | None = None
) -> None:
    """Check every field of an index, and its checksums: fields may fit, and be of another pack.

    Args:
        contents: ``pack.json``.
        records: ``index.npy``.
        names: ``names.npy``.
        stop: Check the first ``stop`` files only, without checksums.

    Raises:
        ValueError: What is wrong, with the name of a file if one is.
        OSError: The index cannot be read.
    """
    if records.dtype != RECORD or names.dtype.kind != "S":
        raise ValueError(f"it holds {records.dtype} and {names.dtype}")
    if not len(records) == len(names) == contents.count:
        raise ValueError(f"{len(records)} records, {len(names)} names, {contents.count} files")
    check = _Check(contents)
    hashes = [blake2b(part.header, digest_size=DIGEST_BYTES) for part in (records, names)]
    for fields, keys in zip(records.blocks(stop), names.blocks(stop), strict=True):
        hashes[0].update(fields.view(np.uint8).data)
        hashes[1].update(keys.view(np.uint8).data)
        check.names(keys)
        check.records(fields, keys)
    if stop is not None:
        return
    check.end_shard()
    listed = {part.name: part.written for part in contents.files}
    for name, array, found in zip((INDEX_FILE, NAMES_FILE), (records, names), hashes, strict=True):
        size = len(array.header) + len(array) * array.dtype.itemsize
        if name in listed and Written(size, found.hexdigest()) != listed[name]:
            raise ValueError(f"{name} has another checksum than {PACK_FILE} lists")


class _Check:
    """What the blocks before tell about the next one."""

    def __init__(self, contents: Contents) -> None:
        self.sizes = {file.name: file.size for file in contents.files}
        self.shard, self.filled = -1, {SHARD: 0, FILES: 0}
        self.last_name = b""

    def names(self, names: Names) -> None:
        """Refuse names outside the folder, or in another order."""
        letters, sizes = names.view(np.uint8).reshape(len(names), -1), np.char.str_len(names)
        starts, ends = letters[:, 0], letters[np.arange(len(names)), sizes - 1]
        odd = (starts == 0) | (starts == _DOT) | (starts == _SLASH) | (ends == _SLASH)
        data = letters.tobytes()
        if odd.any() or b"//" in data or b"/." in data:
            joined = b"/" + b"/\0/".join(names.tolist()) + b"/"
            if any(part in joined for part in _NOT_A_NAME):
                raise ValueError("a name is empty or outside the folder")
        if np.count_nonzero(letters) < sizes.sum():
            raise ValueError("a name has a NUL character")
        before = np.append(np.array([self.last_name], names.dtype), names[:-1])
        _refuse(names <= before, names, "names are not sorted and unique")
        self.last_name = bytes(names[-1])

    def records(self, records: Records, names: Names) -> None:
        """Refuse records that do not fit each other and the files."""
        kind, packed, size = (np.ascontiguousarray(records[f]) for f in ("kind", "packed", "size"))
        height, width = records["height"], records["width"]
        is_file, unit = kind == Kind.FILE, _BYTES_PER_PIXEL[kind]
        _refuse(unit == 0, names, "unknown kind")
        _refuse((packed > 1) | (is_file & (packed > 0)), names, "packed is not 0 or 1")
        shaped = (height > 0) | (width > 0) | (records["file_size"] > 0)
        _refuse(is_file & shaped, names, "a file with a shape")
        if not is_file.all():
            raw = unit * height * width
            _refuse(~is_file & (raw == 0), names, "no pixels")
            _refuse(~is_file & (packed == 0) & (raw != size), names, "size and shape differ")
            too_small = (packed == 1) & (raw > _MAX_INFLATION * size.astype(float))
            _refuse(too_small, names, "size is too small for the shape")
        shard = np.ascontiguousarray(records["shard"])
        changes = np.flatnonzero(shard[1:] != shard[:-1]) + 1
        for first, stop in pairwise((0, *changes.tolist(), len(shard))):
            self._begin(int(shard[first]), names[first])
            part, of = records[first:stop], names[first:stop]
            self._check_offsets(part["offset"], part["size"], of, SHARD)
            self._check_offsets(part["file_offset"], part["file_size"], of, FILES)

    def _begin(self, shard: int, name: bytes) -> None:
        """Continue a shard, or begin a later one."""
        if shard < self.shard:
            raise ValueError(f"shards are not in order: {os.fsdecode(name)!r}")
        if shard > self.shard:
            self.end_shard()
            self.shard, self.filled = shard, {SHARD: 0, FILES: 0}

    def _check_offsets(self, offset: Any, size: Any, names: Names, part: str) -> None:
        """Records lie one after the other in their shard."""
        limit, filled = self._limit(part), self.filled[part]
        size = np.ascontiguousarray(size)
        _refuse(size > limit, names, f"size of {part} is larger than the shard")
        ends = np.cumsum(size, dtype=np.uint64) + np.uint64(filled)
        wrong = (size > 0) & ((offset != ends - size) | (ends > limit))
        _refuse(wrong, names, f"offset of {part} is not where the file before ends")
        self.filled[part] = int(ends[-1])

    def _limit(self, part: str) -> int:
        return min(self.sizes.get(file_name(self.shard, part), 0), _MAX_SIZE)

    def end_shard(self) -> None:
        """Refuse a shard that is larger than its records."""
        for part, filled in self.filled.items():
            if filled != self._limit(part):
                name = file_name(self.shard, part)
                raise ValueError(f"{name} has {self._limit(part)} bytes, its records {filled}")


def _refuse(bad: npt.NDArray[np.bool_], names: Names, problem: str) -> None:
    if bad.any():
        raise ValueError(f"{problem}: {os.fsdecode(names[int(bad.argmax())])!r}")
