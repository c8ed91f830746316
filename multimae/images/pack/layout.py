"""Files of a packed modality folder.

``DIR/{modality folder}/``:

- ``00000.shard`` ...: consecutive records, which training reads;
- ``00000.files`` ...: the original files of images that the shard stores as pixels; not needed by
  training;
- ``names.npy``: ``sub-folder/name.extension`` of every file, sorted; ``index.npy``: one
  :data:`RECORD` for each;
- ``pack.json``: sizes and checksums of all these, written last.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae.images.pack import PACK_FILE, AnyPath
from multimae.specs.errors import UserError
from multimae.weights.atomic import Written

INDEX_FILE = "index.npy"
NAMES_FILE = "names.npy"
SHARD, FILES = "shard", "files"
VERSION = 2
"""Since 2: :func:`record_checksum`, and TIFF files as files."""
_NOT_A_NAME = (b"//", b"/./", b"/../")
_NAMES_AT_A_TIME = 2**16
_MAX_INFLATION = 1040  # DEFLATE shrinks at most 1032 times


class Kind(IntEnum):
    """Content of a record."""

    FILE = 0  # the file itself
    GREY8 = 1  # uint8 (H, W): Pillow's mode L
    GREY16 = 2  # little-endian uint16 (H, W): I;16
    RGB = 3  # uint8 (H, W, 3)


DTYPES: dict[Kind, np.dtype[Any]] = {
    Kind.GREY8: np.dtype("u1"),
    Kind.GREY16: np.dtype("<u2"),
    Kind.RGB: np.dtype("u1"),
}

RECORD = np.dtype(
    [
        ("kind", "u1"),
        ("packed", "u1"),  # whether zlib compressed the pixels
        ("shard", "<u4"),
        ("height", "<u4"),  # of pixels
        ("width", "<u4"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("crc", "<u4"),  # record_checksum of the record; CRC-32 in version 1
        ("file_offset", "<u8"),  # original file of pixels
        ("file_size", "<u8"),
        ("digest", "V16"),  # of the original file (blake2b)
    ]
)

Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class Shard:
    """A file of the pack."""

    name: str
    size: int
    digest: str

    @property
    def written(self) -> Written:
        """Size and checksum."""
        return Written(self.size, self.digest)


@dataclass(frozen=True)
class Contents:
    """``pack.json`` of a modality.

    Attributes:
        options: Options of the packing.
        count: Number of images.
        made_of: For each shard a fingerprint of options and packed files.
        files: All other files in the folder.
        version: Of the format; 1 is read, too.
    """

    options: dict[str, Any]
    count: int
    made_of: tuple[str, ...]
    files: tuple[Shard, ...]
    version: int = VERSION

    def to_json(self) -> bytes:
        """Bytes of the file."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def record_checksum(values: npt.NDArray[np.uint8]) -> int:
    """CRC-32 of the sums of every 256th 64-bit word, and of the last bytes.

    It costs a fifth of a CRC-32 of all bytes, which would slow loading down by more than 3 %.
    """
    end = len(values) // 2048 * 2048
    sums = np.add.reduce(values[:end].view("<u8").reshape(-1, 256), axis=0)
    return zlib.crc32(values[end:].data, zlib.crc32(sums.data))


def shape_of(kind: Kind, height: int, width: int) -> tuple[int, ...]:
    """Shape of the pixels of a record."""
    return (height, width, 3) if kind is Kind.RGB else (height, width)


def file_name(shard: int, part: str) -> str:
    """``00000.shard``."""
    return f"{shard:05d}.{part}"


def read_contents(folder: AnyPath) -> Contents:
    """``pack.json`` of a modality folder.

    Raises:
        UserError: The file is missing, as packing was interrupted, or damaged.
    """
    path = folder / PACK_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found.pop("version")
        if version not in (1, VERSION):
            raise UserError(f"{path}: another version of the format. Pack the data again.")
        files = tuple(_shard(**shard) for shard in found.pop("files"))
        if not isinstance(found["count"], int) or found["count"] < 0:
            raise ValueError(f"count is {found['count']!r}")
        made_of = tuple(found["made_of"])
        return Contents(found["options"], found["count"], made_of, files, version)
    except FileNotFoundError as err:
        raise UserError(
            f"{folder} has shards but no {PACK_FILE}: packing was interrupted. Run "
            "tools/pack_dataset.py again with the same options; it continues from there."
        ) from err
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
        raise UserError(
            f"{path}: not the contents of a pack ({err}). Pack the data again."
        ) from err


def _shard(name: str, size: int, digest: str) -> Shard:
    if not re.fullmatch(r"\d{5,}\.(shard|files)|index\.npy|names\.npy", name):
        raise ValueError(f"no file of a pack is called {name!r}")
    if not isinstance(size, int) or size < 0 or not re.fullmatch("[0-9a-f]{32}", digest):
        raise ValueError(f"size {size!r} or digest {digest!r} of {name}")
    return Shard(name, size, digest)


def check_index(contents: Contents, records: Records, names: npt.NDArray[np.bytes_]) -> None:
    """Check every field of an index.

    Raises:
        ValueError: What is wrong, with the name of the first such file.
    """
    if records.dtype != RECORD or records.ndim != 1 or names.dtype.kind != "S" or names.ndim != 1:
        raise ValueError(f"it holds {records.dtype} and {names.dtype}")
    if not len(records) == len(names) == contents.count:
        raise ValueError(f"{len(records)} records, {len(names)} names, {contents.count} files")
    for first in range(0, len(names), _NAMES_AT_A_TIME):
        listed = names[first : first + _NAMES_AT_A_TIME].tolist()
        joined = b"/" + b"/\0/".join(listed) + b"/"
        if any(part in joined for part in _NOT_A_NAME) or joined.count(b"\0") >= len(listed):
            raise ValueError("a name is empty or outside the folder")
    _refuse(names[1:] <= names[:-1], names[1:], "names are not sorted and unique")
    for problem, bad in _bad_records(contents, records):
        _refuse(bad, names, problem)


def _refuse(bad: npt.NDArray[np.bool_], names: npt.NDArray[np.bytes_], problem: str) -> None:
    if bad.any():
        raise ValueError(f"{problem}: {os.fsdecode(names[int(bad.argmax())])!r}")


Problems = Iterator[tuple[str, npt.NDArray[np.bool_]]]
"""Problems, each with a mask of the records that have it."""


def _bad_records(contents: Contents, records: Records) -> Problems:
    kind, size, packed = records["kind"], records["size"], records["packed"]
    yield "unknown kind", ~np.isin(kind, list(Kind))
    is_file = kind == Kind.FILE
    yield "packed is not 0 or 1", (packed > 1) | (is_file & (packed > 0))
    sizes = {shard.name: shard.size for shard in contents.files}
    yield "shards are not in order", np.append(False, np.diff(records["shard"].astype(int)) < 0)
    yield from _bad_offsets(records, sizes, SHARD, "offset", "size")
    yield from _bad_offsets(records, sizes, FILES, "file_offset", "file_size")
    shaped = (records["height"] > 0) | (records["width"] > 0)
    yield "a file with a shape", is_file & (shaped | (records["file_size"] > 0))
    pixel_bytes = np.ones(256)
    for of_pixels, dtype in DTYPES.items():
        pixel_bytes[of_pixels] = dtype.itemsize * (3 if of_pixels is Kind.RGB else 1)
    raw = pixel_bytes[kind] * records["height"] * records["width"]
    yield "no pixels", ~is_file & (raw == 0)
    yield "size and shape differ", ~is_file & (packed == 0) & (raw != size)
    yield (
        "size is too small for the shape",
        (packed == 1) & (raw > _MAX_INFLATION * size.astype(float)),
    )


def _bad_offsets(
    records: Records, sizes: dict[str, int], part: str, offset_name: str, size_name: str
) -> Problems:
    """Records are written one after the other, and fill their shard."""
    offset, size = records[offset_name], records[size_name]
    numbers, first, index = np.unique(records["shard"], return_index=True, return_inverse=True)
    limits = np.array([sizes.get(file_name(n, part), 0) for n in numbers.tolist()], np.uint64)
    yield f"{size_name} is larger than the shard", size > limits[index]
    before = np.cumsum(size, dtype=np.uint64) - size
    expected = before - before[first][index]
    wrong = (size > 0) & ((offset != expected) | (offset > limits[index] - size))
    yield f"{offset_name} is not where the file before ends", wrong
    last = np.append(first[1:], len(records)) - 1
    unfilled = np.zeros(len(records), bool)
    unfilled[last] = (expected + size)[last] != limits
    yield f"records and size of {part} differ", unfilled
