"""Unpack packs into the original files, and verify their checksums."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from multimae.images.pixels import ImageError
from multimae.weights.atomic import DIGEST_BYTES, checksum
from tools.common.staging import remove_staging, write_file
from utils.data.pack.layout import PACK_FILE, Kind, read_contents
from utils.data.pack.reading import PackedFolder
from utils.logs.errors import UserError, bullet_list


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
    return count


def unpack(root: Path, out: Path) -> Counter[str]:
    """Write every packed file; equal existing files are kept.

    Returns:
        Number of files by modality folder.

    Raises:
        UserError: A pack is damaged, has no originals, or names files outside its folder.
        OSError: A file cannot be written.
    """
    written: Counter[str] = Counter()
    for folder in packed_folders(root):
        pack = PackedFolder(folder)
        for index in range(len(pack)):
            name = _check_name(pack.name(index), folder)
            data = _original(pack, index)
            path = out / folder.name / name
            if not (path.exists() and path.read_bytes() == data):
                write_file(out, path, data)
            written[folder.name] += 1
    remove_staging(out)
    return written


def _original(pack: PackedFolder, index: int) -> bytes:
    record = pack.record(index)
    if record["kind"] != Kind.FILE and not record["file_size"]:
        raise UserError(
            f"{pack.folder} was packed with --no_files: it has the pixels of {pack.name(index)}, "
            "not the original file."
        )
    try:
        data = pack.original(index)
    except ImageError as err:
        raise UserError(str(err)) from err
    if blake2b(data, digest_size=DIGEST_BYTES).digest() != record["digest"].tobytes():
        raise UserError(f"{pack.folder}: {pack.name(index)} is damaged. Copy the pack again.")
    return data


def _check_name(name: str, folder: Path) -> str:
    parts: Sequence[str] = PurePosixPath(name).parts
    if os.path.isabs(name) or ".." in parts or not 1 <= len(parts) <= 2:
        raise UserError(f"{folder}: unsafe file name {name!r} in the pack.")
    return name
