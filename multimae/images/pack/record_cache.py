"""A bounded cache on disk: indices of remote packs, and the records read from them.

Records lie in sparse files, one for each remote shard, at their offsets in it. A part that was
never written reads as zeros, and the record's checksum, which the reader compares anyway, tells.
So a killed process leaves nothing to repair, and processes share the cache.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from multimae.specs.errors import UserError

CACHE_VARIABLE, LIMIT_VARIABLE = "MULTIMAE_CACHE", "MULTIMAE_CACHE_GB"
DEFAULT_LIMIT_GB = 10.0
_log = logging.getLogger(__name__)
_BLOCK = 4096  # a record may occupy parts of one more


def cache_folder() -> Path:
    """``$MULTIMAE_CACHE``, or ``multimae`` in the user's cache folder."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multimae"


def cache_limit() -> int:
    """Bytes of records to keep, from ``$MULTIMAE_CACHE_GB``.

    Raises:
        UserError: It is not a number from 0.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_GB)
    try:
        limit = float(text) * 1e9
        if not 0 <= limit < float("inf"):
            raise ValueError("it must be 0 or more")
    except ValueError as err:
        raise UserError(f"{LIMIT_VARIABLE}={text}: not a size in GB ({err}).") from err
    return int(limit)


class RecordCache:
    """Records of remote shards on disk, by the shard's digest and the offset in it.

    When it is full, shards that no pack opened since this process started have used are deleted,
    then nothing more is stored. Replacing the oldest records instead would serve fewer reads: an
    epoch reads every record once, so the oldest one is the next to be read again.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Create the folder and measure what it holds.

        Args:
            folder: Folder of the shards' records.
            limit: Maximum number of bytes on disk; 0 stores nothing.

        Raises:
            UserError: The folder cannot be written.
        """
        self.folder, self.limit = folder, limit
        self._since = time.time() - 1  # times of files are less precise
        self._full = not limit
        if limit:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with self._locked() as usage:
                    self._measure(usage)
            except OSError as err:
                raise UserError(
                    f"cache folder {folder}: cannot be written ({err.strerror or err}). Set "
                    f"{CACHE_VARIABLE} to another folder, or --data_cache_gb 0."
                ) from err

    def mark_used(self, digests: Iterable[str]) -> None:
        """Keep the records of these shards when space is needed."""
        for digest in digests:
            path = self.folder / digest
            if path.exists():
                os.utime(path)

    def read(self, digest: str, offset: int, size: int) -> npt.NDArray[np.uint8] | None:
        """Bytes at a position, perhaps never written ones; ``None`` if the file ends before."""
        if not self.limit:
            return None
        values = np.empty(size, np.uint8)
        try:
            file = os.open(self.folder / digest, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return values if os.preadv(file, [values.data], offset) == size else None
        finally:
            os.close(file)

    def write(self, digest: str, offset: int, data: npt.NDArray[np.uint8]) -> None:
        """Store the bytes if there is space."""
        if self._full:
            return
        try:
            if not self._reserve(len(data) + _BLOCK):
                self._full = True
                return
            file = os.open(self.folder / digest, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(file, data.data, offset)
            finally:
                os.close(file)
        except OSError as err:  # training does not need the cache
            self._full = True
            _log.warning("%s: no more records are cached (%s)", self.folder, err)

    def _reserve(self, size: int) -> bool:
        """Count ``size`` bytes as used, unless they exceed the limit."""
        with self._locked() as usage:
            used = int(usage.read() or 0)
            if used + size > self.limit:
                used = self._measure(usage)
                for path in self._unused_shards():
                    if used + size <= self.limit:
                        break
                    path.unlink(missing_ok=True)
                    used = self._measure(usage)
            if used + size > self.limit:
                return False
            _write_number(usage, used + size)
            return True

    def _measure(self, usage: BinaryIO) -> int:
        """Write the space that the records occupy on disk to the file ``usage``."""
        used = sum(path.stat().st_blocks * 512 for path in self._shards())
        _write_number(usage, used)
        return used

    def _unused_shards(self) -> list[Path]:
        """Shards last opened or written before this process started, oldest first."""
        times = {path: path.stat().st_mtime for path in self._shards()}
        return sorted((p for p, time in times.items() if time < self._since), key=times.__getitem__)

    def _shards(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if not path.name.startswith(".")]

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """The file that counts the used bytes; one process at a time."""
        import fcntl  # not on Windows

        with os.fdopen(os.open(self.folder / ".used", os.O_RDWR | os.O_CREAT), "r+b") as usage:
            fcntl.flock(usage, fcntl.LOCK_EX)
            yield usage


def _write_number(file: BinaryIO, number: int) -> None:
    file.seek(0)
    file.truncate()
    file.write(str(number).encode())
    file.flush()
