"""Unpack packs into the original files, and verify their checksums."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from multimae.images.pack import PACK_FILE
from multimae.images.pack.layout import read_contents
from multimae.images.pack.reading import PackedFolder
from multimae.specs.errors import UserError, bullet_list
from multimae.weights.atomic import checksum
from tools.common.staging import clean_staging, write_file
from tools.pack.sources import read_original


def packed_folders(root: Path) -> list[Path]:
    """The packed modality folders of a data root.

    Raises:
        UserError: There are no packs.
    """
    found = sorted(path.parent for path in root.glob(f"*/{PACK_FILE}"))
    if not found:
        raise UserError(f"{root} has no packed modality folder (MODALITY/{PACK_FILE}).")
    return found


def verify(root: Path) -> int:
    """Verify the checksum of every file of every pack.

    Returns:
        Number of files read.

    Raises:
        UserError: Files with a wrong checksum, all of them.
    """
    problems, count = [], 0
    for folder in packed_folders(root):
        for part in read_contents(folder).files:
            count += 1
            try:
                found = checksum(folder / part.name)
            except OSError as err:
                problems.append(f"{folder / part.name}: {err.strerror or err}")
                continue
            if found != part.written:
                what = "wrong checksum" if found.size == part.size else "wrong size"
                problems.append(f"{folder / part.name}: {what}")
    if problems:
        raise UserError(
            f"{len(problems)} damaged files:\n{bullet_list(problems)}\nCopy them again, or delete "
            f"the {PACK_FILE} beside them and repack."
        )
    for folder in packed_folders(root):
        PackedFolder(folder)  # checks the fields of its index
    return count


def unpack(root: Path, out: Path) -> Counter[str]:
    """Write every packed file; equal existing files are kept.

    Returns:
        Number of files by modality folder.

    Raises:
        UserError: A pack is damaged, has no originals, or names files outside its folder; a link
            in ``out`` would lead elsewhere.
        OSError: A file cannot be written.
    """
    written: Counter[str] = Counter()
    with clean_staging(out):
        for folder in packed_folders(root):
            pack = PackedFolder(folder)
            for index in range(len(pack)):
                name = _check_name(pack.name(index), folder)
                data = read_original(pack, index)
                path = out / folder.name / name
                refuse_links(out, path)
                if not (path.is_file() and path.read_bytes() == data):
                    write_file(out, path, data)
                written[folder.name] += 1
    return written


def refuse_links(out: Path, path: Path) -> None:
    """Raise a UserError if a component of ``path`` below ``out`` is a symbolic link."""
    for part in (path, *path.parents):
        if part == out:
            return
        if part.is_symlink():
            raise UserError(f"{part} is a link, which unpacking does not follow. Remove it.")


def _check_name(name: str, folder: Path) -> str:
    parts: Sequence[str] = PurePosixPath(name).parts
    if os.path.isabs(name) or ".." in parts or not parts:
        raise UserError(f"{folder}: unsafe file name {name!r} in the pack.")
    return name
