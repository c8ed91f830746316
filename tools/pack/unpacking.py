"""Packs -> the files that were packed; and whether a pack is undamaged."""

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
        UserError: There are none.
    """
    found = sorted(path.parent for path in root.glob(f"*/{PACK_FILE}"))
    if not found:
        raise UserError(f"{root} has no packed modality folder (MODALITY/{PACK_FILE}).")
    return found


def verify(root: Path) -> int:
    """Read every byte of every pack.

    Returns:
        The number of files that were read.

    Raises:
        UserError: All files whose checksum is not that of packing.
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
            f"{len(problems)} damaged files:\n{bullet_list(problems)}\nCopy them again, or remove "
            f"the {PACK_FILE} beside them and pack the data again."
        )
    return count


def unpack(root: Path, out: Path) -> Counter[str]:
    """Write every packed file as it was; those that are there already are kept.

    Returns:
        Files by modality folder.

    Raises:
        UserError: A pack is damaged, has no originals, or names files outside its folder.
        OSError: A file cannot be written.
    """
    written: Counter[str] = Counter()
    for folder in packed_folders(root):
        pack = PackedFolder(folder)
        for row in range(len(pack)):
            name = _safe(pack.name(row), folder)
            data = _original(pack, row)
            path = out / folder.name / name
            if not (path.exists() and path.read_bytes() == data):
                write_file(out, path, data)
            written[folder.name] += 1
    remove_staging(out)
    return written


def _original(pack: PackedFolder, row: int) -> bytes:
    record = pack.record(row)
    if record["kind"] != Kind.FILE and not record["file_size"]:
        raise UserError(
            f"{pack.folder} was packed with --no_files: it has the pixels of {pack.name(row)}, "
            "but not its file."
        )
    try:
        data = pack.original(row)
    except ImageError as err:
        raise UserError(str(err)) from err
    if blake2b(data, digest_size=DIGEST_BYTES).digest() != record["digest"].tobytes():
        raise UserError(f"{pack.folder}: {pack.name(row)} is damaged. Copy the pack again.")
    return data


def _safe(name: str, folder: Path) -> str:
    parts: Sequence[str] = PurePosixPath(name).parts
    if os.path.isabs(name) or ".." in parts or not 1 <= len(parts) <= 2:
        raise UserError(f"{folder}: the pack names a file {name!r}, which it must not.")
    return name
