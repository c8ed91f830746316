"""Files inside archives, tables and stores, and the names they get in a pack."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, NamedTuple

from multimae.images.pack import to_path
from multimae.images.readers import SUFFIXES
from multimae.specs.errors import UserError, bullet_list


class Entry(NamedTuple):
    """Where the bytes of a file are.

    Attributes:
        kind: ``range``: ``size`` bytes of a file from ``offset``; ``zip``: ``member`` of an
            archive; ``url``: a URL.
        container: Path or URL.
        version: Changes with the content, as far as size and time tell.
        member: Name in a zip file; otherwise for messages.
        offset: First byte.
        size: Number of bytes.
    """

    kind: Literal["range", "zip", "url"]
    container: str
    version: str
    member: str = ""
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        """The file and the member."""
        return f"{self.container}: {self.member}" if self.kind == "zip" else self.member

    def read(self) -> bytes:
        """The bytes.

        Raises:
            UserError: They cannot be read.
        """
        try:
            if self.kind == "zip":
                return _open_zip(self.container, self.version).read(self.member)
            if self.kind == "url":
                return to_path(self.container).read_bytes()
            with open(self.container, "rb") as stream:
                stream.seek(self.offset)
                data = stream.read(self.size)
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as err:
            raise UserError(f"{self}: cannot be read ({err}).") from err
        if len(data) < self.size:
            raise UserError(f"{self}: ends {self.size - len(data)} bytes too early.")
        return data


@dataclass(frozen=True)
class Members:
    """Files of one modality.

    Attributes:
        entries: By ``sub-folder/name.extension``, sorted.
    """

    entries: Mapping[bytes, Entry]

    def only(self, names: Iterable[bytes]) -> Members:
        """The files with these names."""
        return Members({name: self.entries[name] for name in names})

    def fingerprint(self, name: bytes) -> bytes:
        """What changes with a file."""
        entry = self.entries[name]
        return os.fsencode(f"{entry.member} {entry.offset} {entry.size} {entry.version}")

    def read(self, name: bytes) -> bytes:
        """Bytes of a file; raises a UserError if they cannot be read."""
        return self.entries[name].read()


@dataclass
class Inventory:
    """Files found in the sources, which :meth:`finish` names and checks.

    Attributes:
        folders: Modality folders in the order of the command line.
        ignored: Files that are not imported, by reason.
    """

    folders: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Nothing found yet."""
        self._found: dict[tuple[str, str], tuple[str, Entry]] = {}
        self._labels: dict[str, str] = {}
        self._problems: list[str] = []

    def add(self, folder: str, key: str, suffix: str, entry: Entry) -> None:
        """Add a file.

        Args:
            folder: Modality folder.
            key: Name of the sample.
            suffix: Extension of the file, with its dot.
            entry: Where it is.
        """
        if folder not in self.folders:
            self.folders.append(folder)
        known = self._found.get((folder, key))
        if known is not None:
            self._problems.append(f"'{folder}' has {key} twice: in {known[1]} and in {entry}")
        elif not _is_safe(key):
            self._problems.append(f"{entry}: unsafe name {key!r}")
        elif suffix.lower() not in SUFFIXES:
            self._problems.append(f"{entry}: no reader for '{suffix}' files")
        self._found[folder, key] = suffix, entry

    def label(self, key: str, label: str) -> None:
        """Set the class of a sample, which becomes its sub-folder."""
        if self._labels.setdefault(key, label) != label:
            self._problems.append(f"{key} has two classes: {self._labels[key]} and {label}")

    def finish(self, classes: bool) -> dict[str, Members]:
        """Files by modality folder.

        Args:
            classes: Whether every sample must have a class.

        Raises:
            UserError: Nothing was found, or names are ambiguous, unsafe or without reader.
        """
        keys = {key for _, key in self._found}
        if classes:
            unlabelled = sorted(keys - self._labels.keys())
            self._problems += [f"{key} has no class" for key in unlabelled]
        self._problems += _class_problems({self._labels[k] for k in keys & self._labels.keys()})
        if self._problems:
            raise UserError(
                f"{len(self._problems)} problems with the files to import:\n"
                f"{bullet_list(self._problems)}\nNames must be unique over all sources, and every "
                f"file needs a reader ({', '.join(sorted(SUFFIXES))})."
            )
        named: dict[str, dict[bytes, Entry]] = {folder: {} for folder in self.folders}
        for (folder, key), (suffix, entry) in self._found.items():
            sub_folder = f"{self._labels[key]}/" if key in self._labels else ""
            named[folder][os.fsencode(f"{sub_folder}{key}{suffix}")] = entry
        empty = [folder for folder, files in named.items() if not files]
        if empty or not named:
            raise UserError(
                f"the sources hold no files of {', '.join(empty) or 'any modality'}. Check "
                f"--columns.{self._ignored_text()}"
            )
        return {folder: Members(dict(sorted(files.items()))) for folder, files in named.items()}

    def summary(self) -> list[str]:
        """Lines about samples that lack files, and about ignored files."""
        have: dict[str, set[str]] = {folder: set() for folder in self.folders}
        for folder, key in self._found:
            have[folder].add(key)
        keys = set().union(*have.values())
        lines = []
        for folder, found in have.items():
            missing = sorted(keys - found)
            if missing:
                examples = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
                lines.append(
                    f"warning: {len(missing)} of {len(keys)} samples lack '{folder}': {examples}"
                )
        return lines + [text.strip() for text in [self._ignored_text()] if text]

    def _ignored_text(self) -> str:
        counts = ", ".join(f"{n} {what}" for what, n in self.ignored.most_common(8))
        return f" Ignored: {counts}." if counts else ""


class Spool:
    """One file that receives the bytes of many; :class:`Entry` finds them."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        """``stream``: opened for writing at ``path``."""
        self.path, self.stream = path, stream

    def write(self, data: bytes, source: str, version: str) -> Entry:
        """Append the bytes of a file; ``source`` names it in messages."""
        offset = self.stream.tell()
        self.stream.write(data)
        return Entry("range", str(self.path), version, source, offset, len(data))


@lru_cache(maxsize=4)
def _open_zip(path: str, version: str) -> zipfile.ZipFile:
    """Open an archive once per process and version."""
    return zipfile.ZipFile(path)


def version_of(path: Path) -> str:
    """Size and time of a file."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def folder_name(label: str) -> str:
    """The name of a class as a folder name."""
    return label.strip().replace("/", "_").replace("\\", "_")


def class_folders(labels: Sequence[str]) -> list[str]:
    """Folder of each class id; with the id in front where names alone would be ambiguous."""
    names = [folder_name(label) for label in labels]
    if len(set(names)) == len(names) and all(_is_safe(name) for name in names):
        return names
    width = len(str(len(names) - 1))
    return [f"{i:0{width}d} {name}".strip() for i, name in enumerate(names)]


def _class_problems(labels: set[str]) -> list[str]:
    return [f"unsafe class name {name!r}" for name in sorted(labels) if not _is_safe(name)]


def _is_safe(key: str) -> bool:
    """Whether a name stays in its folder and is no hidden file."""
    parts = PurePosixPath(key).parts
    return (
        bool(parts)
        and "/".join(parts) == key
        and not key.startswith("/")
        and "\0" not in key
        and not any(part.startswith(".") for part in parts)
    )
