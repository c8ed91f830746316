"""List the files of a data set and pair them by name; problems become findings."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from multimae.images.index.listing import SETTINGS_FILE
from multimae.images.pack import is_packed
from multimae.images.pack.reading import PackedFolder
from multimae.images.pixels import Array
from multimae.images.readers import SUFFIXES
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from tools.doctor.findings import Finding, Severity


@dataclass(frozen=True)
class File:
    """A file and its size in bytes.

    Attributes:
        path: Its path, of a packed file the one it had.
        size: Bytes, of the record of a packed file.
        pack: Folder of the pack it is in, or empty.
        index: Its index there.
    """

    path: str
    size: int
    pack: str = ""
    index: int = 0

    def read(self) -> bytes | Array:
        """Bytes of the file, or the pixels that a pack stores.

        Raises:
            OSError: It cannot be read.
            ImageError: The pack is damaged.
        """
        if self.pack:
            return _open_pack(self.pack).read(self.index)
        if not stat.S_ISREG(os.stat(self.path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        with open(self.path, "rb") as stream:
            return stream.read()


@lru_cache(maxsize=16)
def _open_pack(folder: str) -> PackedFolder:
    return PackedFolder(Path(folder))


@dataclass
class Listing:
    """The files of a data set.

    Attributes:
        root: Data root.
        modalities: Modalities that have a folder.
        files: By modality and ``sub-folder/name``.
        findings: Problems with names and folders.
    """

    root: Path
    modalities: tuple[Modality, ...]
    files: dict[str, dict[str, File]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def keys(self) -> list[str]:
        """Names present in any modality, sorted."""
        return sorted(set[str]().union(*self.files.values()))

    def sample(self, key: str) -> dict[str, File]:
        """Existing files of a sample by modality."""
        return {name: by_key[key] for name, by_key in self.files.items() if key in by_key}


def find_modalities(root: Path, table: Iterable[Modality]) -> tuple[Modality, ...]:
    """Modalities of the table that have a folder under ``root``.

    Raises:
        UserError: No such folder, or no modality has one.
    """
    _check_root(root)
    modalities = tuple(m for m in table if m.source is None and (root / m.data_folder).is_dir())
    if not modalities:
        present = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "none"
        raise UserError(
            f"{root} has no folder of a known modality (folders: {present}). Give the folder that "
            "holds one sub-folder per modality, or declare the modalities in --config."
        )
    return modalities


def list_files(root: Path, modalities: Sequence[Modality]) -> Listing:
    """List all files of the modalities under ``root`` and pair them by name.

    Raises:
        UserError: ``root`` is not a folder.
    """
    _check_root(root)
    listing = Listing(root, tuple(m for m in modalities if (root / m.data_folder).is_dir()))
    for modality in modalities:
        if modality not in listing.modalities:
            text = "no folder of this modality. Create it, or set `folder:` in the config."
            where = str(root / modality.data_folder)
            listing.findings.append(Finding("error", "missing-folder", text, where, modality.name))
    for modality in listing.modalities:
        listing.files[modality.name] = _list(listing, modality)
    listing.findings += _missing(listing)
    return listing


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. Give the folder that holds the modalities.")


def _list(listing: Listing, modality: Modality) -> dict[str, File]:
    """List one modality by name; note empty folders, name clashes and ignored files."""
    top = listing.root / modality.data_folder
    found: dict[str, File] = {}
    other: list[str] = []

    def note(severity: Severity, code: str, text: str, path: str) -> None:
        listing.findings.append(Finding(severity, code, text, path, modality.name))

    if is_packed(top):
        _open_pack.cache_clear()
        pack = _open_pack(str(top))
        for index in range(len(pack)):
            name = pack.name(index)
            key, size = name.rpartition(".")[0], int(pack.record(index)["size"])
            if not key.endswith(modality.suffix):
                continue
            key = key.removesuffix(modality.suffix)
            found[key] = File(f"{top}/{name}", size, str(top), index)
    pending: list[tuple[str, str, tuple[str, ...]]] = [] if found else [("", str(top), ())]
    for prefix, folder, above in pending:
        images = 0
        above = (*above, os.path.realpath(folder))
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as err:
            note("error", "unreadable", f"cannot be listed ({err.strerror}).", folder)
            continue
        for entry in (e for e in entries if not e.name.startswith(".")):
            stem, dot, suffix = entry.name.rpartition(".")
            if entry.is_dir():
                if os.path.realpath(entry.path) not in above:  # as training: no link to one above
                    pending.append((f"{prefix}{entry.name}/", entry.path, above))
            elif stem.endswith(modality.suffix) and stem and (dot + suffix).lower() in SUFFIXES:
                images += 1
                key = prefix + stem.removesuffix(modality.suffix)
                if key in found:
                    text = f"and {found[key].path} have the same name: keep one."
                    note("error", "two-files", text, entry.path)
                found[key] = _file(entry)
            elif entry.name != SETTINGS_FILE:
                other.append(entry.path)
        if prefix and not images:
            note("warning", "empty-folder", "has no images. Remove it, or add images.", folder)
    if not found:
        note("error", "no-images", "has no images in it or in its sub-folders.", str(top))
    if other:
        text = f"{len(other)} files are not images and are not read, for example {other[0]}"
        listing.findings.append(Finding("info", "other-files", text, "", modality.name))
    return found


def _file(entry: os.DirEntry[str]) -> File:
    try:
        return File(entry.path, entry.stat().st_size)
    except OSError:  # a dangling link, reported when it is read
        return File(entry.path, 0)


def _form(key: str) -> str:
    return unicodedata.normalize("NFC", key)


def _missing(listing: Listing) -> Iterator[Finding]:
    """Find samples that lack a file of a modality."""
    union = listing.keys()
    for modality in listing.modalities:
        files = listing.files[modality.name]
        lacking = [key for key in union if key not in files] if files else []
        suffixes = Counter(Path(f.path).suffix for f in files.values()) if lacking else Counter()
        forms = {_form(key): key for key in files if not key.isascii()} if lacking else {}
        for key in lacking:
            path = (
                listing.root
                / modality.data_folder
                / (key + modality.suffix + suffixes.most_common(1)[0][0])
            )
            have = next(f.path for f in listing.sample(key).values())
            text = f"does not exist, but {have} does. Add it, or remove the sample."
            if _form(key) in forms:
                text = (
                    f"{forms[_form(key)]!a} differs from {key!a} in the Unicode form of letters "
                    f"(NFC, NFD) only, so {have} has no partner. Rename both to one form."
                )
            yield Finding(
                "error",
                "missing-file",
                text,
                str(path),
                modality.name,
                key,
            )
