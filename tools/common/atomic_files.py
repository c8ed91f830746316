"""Writing files of a data set so that a kill leaves no halves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SPARE = ".tmp"


@contextmanager
def replacing(root: Path, path: Path) -> Iterator[Path]:
    """A temporary name in ``root/.tmp``; what is there at the end is moved to ``path``.

    Args:
        root: Data set folder, on the same file system as ``path``.
        path: Final name; its folder is made.
    """
    spare = root / _SPARE
    spare.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = spare / f"{os.getpid()}-{path.parent.parent.name}-{path.name}"
    temp.unlink(missing_ok=True)
    try:
        yield temp
        temp.replace(path)
    finally:
        # Also after success: renaming one hard link onto another of the same file does nothing.
        temp.unlink(missing_ok=True)


def write_file(root: Path, path: Path, data: bytes) -> None:
    """Write a file under a temporary name in ``root/.tmp``, then move it into place."""
    with replacing(root, path) as temp:
        temp.write_bytes(data)


def clean(root: Path) -> None:
    """Remove what a killed run may have left in ``root/.tmp``."""
    spare = root / _SPARE
    if spare.is_dir():
        for file in spare.iterdir():
            file.unlink(missing_ok=True)
        spare.rmdir()
