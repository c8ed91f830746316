"""Write the files of a data set in a staging folder, then rename them into place.

A killed run leaves partial files in ``root/.tmp`` only, where no loader lists them. Unlike
:func:`multimae.weights.atomic.atomic_file` a file may also be a link, and is not flushed to disk
one by one: a data set has millions, and the command repeats what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from multimae.specs.errors import UserError

STAGING_FOLDER = ".tmp"
_MARKER = ".multimae-staging"


@contextmanager
def staged(root: Path, path: Path) -> Iterator[Path]:
    """Yield a path in ``root/.tmp`` to create a file or link at; rename it to ``path`` at the end.

    Args:
        root: Data set folder, on the same file system as ``path``.
        path: Final name; its folder is created.

    Raises:
        UserError: ``root/.tmp`` is a link, or holds files of others.
    """
    folder = _claim(root / STAGING_FOLDER)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = blake2b(os.fsencode(path), digest_size=16).hexdigest()  # the name itself may be long
    temp = folder / f"{os.getpid()}-{name}"
    temp.unlink(missing_ok=True)
    try:
        yield temp
        temp.replace(path)
    finally:
        # Also after success: renaming a hard link onto another link to the same file is a no-op.
        temp.unlink(missing_ok=True)


def write_file(root: Path, path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` by way of the staging folder of ``root``."""
    with staged(root, path) as temp:
        temp.write_bytes(data)


@contextmanager
def clean_staging(root: Path) -> Iterator[None]:
    """Remove partial files of killed runs before, and those of this one after, also on an error."""
    remove_staging(root)
    try:
        yield
    finally:
        remove_staging(root)


def remove_staging(root: Path) -> None:
    """Remove the staging folder and the partial files of killed runs; no folder of others."""
    folder = root / STAGING_FOLDER
    if _is_staging(folder):
        for file in (*staged_files(root), folder / _MARKER):
            file.unlink(missing_ok=True)
        folder.rmdir()


def staged_files(root: Path) -> list[Path]:
    """Partial files in the staging folder."""
    folder = root / STAGING_FOLDER
    return [p for p in folder.iterdir() if p.name != _MARKER] if _is_staging(folder) else []


def _claim(folder: Path) -> Path:
    """Create the staging folder and its marker."""
    folder.mkdir(parents=True, exist_ok=True)
    # Another thread may claim it at the same time: its marker is there before its files.
    empty = next(folder.iterdir(), None) is None
    if not _is_staging(folder):
        if folder.is_symlink() or not empty:
            raise UserError(f"{folder} is needed for partial files, but has others. Remove it.")
        (folder / _MARKER).touch()
    return folder


def _is_staging(folder: Path) -> bool:
    return not folder.is_symlink() and (folder / _MARKER).is_file()
