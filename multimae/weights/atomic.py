"""Atomic file writes and checksums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

DIGEST_BYTES = 16
TEMPORARY_SUFFIX = ".tmp"
_CHUNK = 2**22


class Written(NamedTuple):
    """Size in bytes and checksum (blake2b, hexadecimal) of a file."""

    size: int
    digest: str


class _Hashing:
    """Writable stream that hashes the data and keeps the last write error."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.size, self.hash = stream, 0, blake2b(digest_size=DIGEST_BYTES)
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        try:
            return self.stream.write(data)
        except OSError as err:
            self.error = err
            raise

    def flush(self) -> None:
        self.stream.flush()


@contextmanager
def atomic_file(
    path: str | os.PathLike[str], before_renaming: Callable[[], None] = lambda: None
) -> Iterator[BinaryIO]:
    """Write to a temporary file, sync it to disk and rename it to ``path`` on exit.

    Args:
        path: Final name; its folder must exist.
        before_renaming: Called after the sync and before the rename.

    Raises:
        OSError: The folder is missing, not writable or full. The old file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        before_renaming()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_hashed(
    path: Path,
    write: Callable[[BinaryIO], object],
    announce: Callable[[Written], None] = lambda written: None,
) -> Written:
    """Write a file atomically and return its size and checksum.

    Args:
        path: Final name; its folder must exist.
        write: Writes the contents sequentially.
        announce: Called with size and checksum before the rename.

    Raises:
        OSError: As for :func:`atomic_file`.
    """
    hashing: _Hashing | None = None

    def written() -> Written:
        assert hashing is not None
        return Written(hashing.size, hashing.hash.hexdigest())

    with atomic_file(path, lambda: announce(written())) as stream:
        hashing = _Hashing(stream)
        try:
            write(cast(BinaryIO, hashing))
        except RuntimeError as err:  # torch.save hides the OSError
            raise hashing.error or err from err
    return written()


def checksum(path: Path, hashed: Any = None) -> Written:
    """Compute size and checksum of a file.

    Args:
        path: The file.
        hashed: New object of :mod:`hashlib` to use instead of blake2b.

    Raises:
        OSError: The file cannot be read.
    """
    hashed, size = hashed or blake2b(digest_size=DIGEST_BYTES), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hashed.update(chunk)
            size += len(chunk)
    return Written(size, hashed.hexdigest())


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete temporary files that killed processes left in ``folder``."""
    left = [p for p in folder.glob(f".*{TEMPORARY_SUFFIX}") if p.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
