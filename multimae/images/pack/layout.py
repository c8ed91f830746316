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
import re
import zlib
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
