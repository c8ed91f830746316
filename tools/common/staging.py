"""Write the files of a data set in a staging folder, then rename them into place.

A killed run leaves partial files in ``root/.tmp`` only, where no loader lists them. Unlike
:func:`multimae.weights.atomic.atomic_file` a file may also be a link, and is not flushed to disk
one by one: a data set has millions, and the command repeats what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAGING_FOLDER = ".tmp"


@contextmanager
def staged(root: Path, path: Path) -> Iterator[Path]:
    """Yield a path in ``root/.tmp`` to create a file or link at; rename it to ``path`` at the end.

    Args:
        root: Data set folder, on the same file system as ``path``.
        path: Final name; its folder is created.
    """
    folder = root / STAGING_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = folder / f"{os.getpid()}-{path.parent.parent.name}-{path.name}"
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


def remove_staging(root: Path) -> None:
    """Remove the staging folder and the partial files of killed runs."""
    folder = root / STAGING_FOLDER
    if folder.is_dir():
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        folder.rmdir()
