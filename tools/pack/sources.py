"""Images of a data set and the original files of a modality folder, plain or packed."""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections import Counter
from functools import lru_cache
from pathlib import Path

from multimae.images.index.listing import LAYOUT, list_folder
from multimae.images.index.listing_errors import without_reader
from multimae.images.pack import PACK_FILE, is_packed
from multimae.images.pack.reading import PackedFolder
from multimae.images.pixels import ImageError
from multimae.specs.errors import UserError


def list_images(root: Path) -> dict[str, list[bytes]]:
    """Sorted ``sub-folder/name.extension`` of all images, by modality folder.

    Raises:
        UserError: There are none, or a folder cannot be listed.
    """
    folders = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    ignored = Counter[str]()
    found = {f: _listed(root / f, ignored) for f in folders if f[0] != "."}
    if not any(found.values()):
        why = without_reader(root, ignored)
        raise UserError(f"data path {root} holds no images{why}. The layout is {LAYOUT}.")
    return {folder: names for folder, names in found.items() if names}


def _listed(folder: Path, ignored: Counter[str]) -> list[bytes]:
    if is_packed(folder):
        return list(PackedFolder(folder).names)
    listing = list_folder(folder, folder.name)
    ignored.update(listing.ignored)
    return sorted(listing.files())


class Source:
    """Files of a modality folder.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        """Open the index if the folder is packed.

        Raises:
            UserError: A damaged pack.
        """
        self.folder = folder
        time = (folder / PACK_FILE).stat().st_mtime_ns if is_packed(folder) else 0
        self._pack = _open(folder, time) if time else None

    def fingerprint(self, name: bytes) -> bytes:
        """What changes with a file: its size and time, or its hash in a pack.

        Raises:
            UserError: Not a regular file.
        """
        if self._pack is not None:
            return bytes(self._pack.record(self._index(name))["digest"].tobytes())
        path = self.folder / os.fsdecode(name)
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: not a regular file. Remove it.")
        return f"{found.st_size} {found.st_mtime_ns}".encode()

    def read(self, name: bytes) -> bytes:
        """Bytes of a file.

        Raises:
            UserError: It cannot be read, or the pack has no originals.
        """
        if self._pack is not None:
            return read_original(self._pack, self._index(name))
        path = self.folder / os.fsdecode(name)
        try:
            return path.read_bytes()
        except OSError as err:
            raise UserError(f"{path}: cannot be read ({err}).") from err

    def _index(self, name: bytes) -> int:
        assert self._pack is not None
        return bisect_left(self._pack.names, name)


@lru_cache(maxsize=8)
def _open(folder: Path, time_ns: int) -> PackedFolder:
    """Open a pack once per process and version of its contents."""
    return PackedFolder(folder)


def read_original(pack: PackedFolder, index: int) -> bytes:
    """Original bytes of a packed file, compared with their hash.

    Raises:
        UserError: They are damaged, or the pack has none.
    """
    try:
        return pack.original(index)
    except ImageError as err:
        raise UserError(str(err)) from err
