"""Which images a modality folder has, plain or packed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from multimae.images.readers import SUFFIXES
from utils.data.names import LAYOUT
from utils.data.pack.layout import is_packed
from utils.data.pack.reading import PackedFolder
from utils.logs.errors import UserError, bullet_list


def list_images(root: Path) -> dict[str, list[bytes]]:
    """Sorted ``sub-folder/name.extension`` of all images, by modality folder.

    Raises:
        UserError: There are none, or a folder cannot be listed.
    """
    folders = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    found = {f: sorted(map(os.fsencode, _images(root / f, f))) for f in folders if f[0] != "."}
    if not any(found.values()):
        raise UserError(f"data path {root} holds no images. The layout is {LAYOUT}.")
    return {folder: names for folder, names in found.items() if names}


def sub_folders(folder: Path) -> list[str]:
    """Sorted names of the sub-folders of a modality folder, plain or packed."""
    if is_packed(folder):
        names = PackedFolder(folder).names
        return sorted({os.fsdecode(name).partition("/")[0] for name in names if b"/" in name})
    return sorted(p.name for p in folder.iterdir() if p.is_dir())


def scan(
    folder: Path, modality: str, ending: str = "", pack: PackedFolder | None = None
) -> dict[str, str]:
    """``{sub-folder/name: extension}`` of every image.

    Args:
        folder: Of the modality.
        modality: For messages.
        ending: Names must end with it, and it is taken off; others are passed over.
        pack: The folder's pack, if it is one.

    Raises:
        UserError: No images, or the same name twice.
    """
    found: dict[str, str] = {}
    clashes: list[str] = []
    packed = range(0 if pack is None else len(pack))
    unread: Counter[str] = Counter()
    names = _images(folder, modality, unread) if pack is None else map(pack.name, packed)
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if not stem.endswith(ending):
            continue
        key = stem.removesuffix(ending)
        if key in found:
            clashes.append(f"{folder / key}: {found[key]} and {dot + suffix}")
        found[key] = dot + suffix
    if clashes:
        raise UserError(
            f"modality '{modality}': the same name with two extensions is ambiguous:\n"
            f"{bullet_list(sorted(clashes))}\nKeep one file of each."
        )
    if not found:
        raise UserError(
            f"modality '{modality}': no images in {folder} or its sub-folders"
            f"{_without_reader(unread)}.\nThe layout is "
            f"{LAYOUT} with one level of sub-folders; extensions: {', '.join(sorted(SUFFIXES))}."
        )
    return found


def _without_reader(unread: Counter[str]) -> str:
    """The files of a folder that nothing reads, by extension."""
    if not unread:
        return ""
    counts = ", ".join(f"{count} '{suffix}'" for suffix, count in unread.most_common(3))
    return f"; there is no reader for its files: {counts}. Convert them (.npy holds any array)"


def _images(folder: Path, modality: str, unread: Counter[str] | None = None) -> Iterator[str]:
    """``sub-folder/name.extension`` of every image, without a stat per file.

    Other files are counted in ``unread``, by extension.
    """
    pending = [("", str(folder))]
    for prefix, path in pending:
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    stem, dot, suffix = entry.name.rpartition(".")
                    if entry.name.startswith("."):
                        continue
                    if stem and (dot + suffix).lower() in SUFFIXES:
                        yield prefix + entry.name
                    elif not prefix and entry.is_dir():
                        pending.append((f"{entry.name}/", entry.path))
                    elif stem and dot and unread is not None:
                        unread[dot + suffix] += 1
        except OSError as err:
            raise UserError(f"modality '{modality}': cannot list {path} ({err.strerror}).") from err
