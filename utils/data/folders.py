"""Aligned image folders: which files exist, and which of them belong to one sample.

Layout: ``root/{modality folder}/{sub-folder}/{name}.{extension}``, or files directly in the
modality folder; a modality folder may be packed (:mod:`utils.data.pack`). A sample is the files of
one ``sub-folder/name`` in all modality folders, whatever their extensions; a file missing somewhere
is an error, or leaves the sample out if that is asked for, and never shifts the pairing of others.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae.images.pixels import Array, Pixels
from multimae.images.readers import SUFFIXES, check_pixels, read_bytes, read_fast
from multimae.specs.coercion import did_you_mean
from multimae.specs.modalities import Modality
from utils.data.fast_decode import as_photo
from utils.data.pack.layout import is_packed
from utils.data.pack.reading import PackedFolder
from utils.logs.errors import UserError, bullet_list

CLASSES_FILE = "classes.json"
"""Names of the classes of label images, by id; beside the modality folders."""
SETTINGS_FILE = "prepared.json"
"""What the files of a modality were made with; beside them."""
LAYOUT = "root/{modality}/{sub-folder}/{name}.{extension}"
_ABSENT = 255  # code of an extension


def readable(modalities: Sequence[Modality]) -> tuple[Modality, ...]:
    """Rows with files of their own: those without a ``source``.

    Raises:
        ValueError: The source of a row is not among ``modalities``, so nothing says how to read it.
    """
    rows = tuple(m for m in modalities if m.source is None)
    names = {m.name for m in rows}
    for m in modalities:
        if m.data_name not in names:
            raise ValueError(f"modality '{m.name}' is computed from '{m.source}': pass both rows")
    return rows


class MultiModalFolder:
    """Index of the samples under ``root``, in sorted order of their names.

    Attributes:
        root: Data root.
        modalities: Rows that have files (see :func:`readable`).
        incomplete: A file of every sample that was left out, and what that sample lacks.
    """

    def __init__(
        self,
        root: str | Path,
        modalities: Sequence[Modality],
        *,
        skip_incomplete: bool = False,
        allow_missing: bool = False,
    ) -> None:
        """Scan the folders once.

        Args:
            root: Data root.
            modalities: Rows to pair; those with a ``source`` are not read.
            skip_incomplete: Leave out samples that lack a file.
            allow_missing: Keep them; see :meth:`has`.

        Raises:
            UserError: Root or folders missing or empty, ambiguous names, or names that do not
                match; with ``skip_incomplete`` only if none does.
        """
        self.root = Path(root)
        self._root = os.fspath(self.root)
        self.modalities = readable(modalities)
        folders = _modality_folders(root, self.modalities)
        self._packs = {n: PackedFolder(path) for n, path in folders.items() if is_packed(path)}
        found = {
            m.name: _scan(folders[m.name], m.name, self.suffix(m), self._packs.get(m.name))
            for m in self.modalities
        }
        # Chosen among the names that any modality has: which samples those are does not depend on
        # what others lack.
        chosen = set(self.select(sorted(set().union(*found.values()))))
        complete = chosen if allow_missing else chosen.intersection(*found.values())
        self.incomplete: list[tuple[Path, str]] = []
        if len(complete) < len(chosen):
            if not (skip_incomplete and complete):
                _refuse_incomplete(folders, found, chosen)
            self.incomplete = [self._lack(k, folders, found) for k in sorted(chosen - complete)]
        # One flat buffer per column: Python strings would be copied into every worker process, page
        # by page, as their reference counts change.
        keys = sorted(map(os.fsencode, complete))
        self._keys: npt.NDArray[np.bytes_] = np.array(keys, dtype=np.bytes_)
        names = list(map(os.fsdecode, keys))
        self._extensions: dict[str, tuple[list[str], npt.NDArray[Any]]] = {}
        for name, by_key in found.items():
            kinds = sorted({by_key[k] for k in names if k in by_key})
            code = {ext: i for i, ext in enumerate(kinds)}
            places = (code[by_key[k]] if k in by_key else _ABSENT for k in names)
            column = np.fromiter(places, np.uint8, len(names))
            self._extensions[name] = kinds, column
        self._rows = {m.name: self._rows_in(m) for m in self.modalities if m.name in self._packs}

    def suffix(self, modality: Modality) -> str:
        """What every file name of a modality ends with, before its extension."""
        return ""

    def select(self, names: list[str]) -> list[str]:
        """Those of the sorted names ``sub-folder/name`` that belong to this set."""
        return names

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._keys)

    def name(self, index: int) -> str:
        """``sub-folder/name`` of a sample."""
        return os.fsdecode(self._keys[index])

    def has(self, index: int, modality: Modality) -> bool:
        """Whether a sample has a file of a modality; always, unless ``allow_missing``."""
        return bool(self._extensions[modality.name][1][index] != _ABSENT)

    def patterns(self) -> dict[tuple[str, ...], int]:
        """Which modalities samples have, and a sample that has just these."""
        there = np.stack([column != _ABSENT for _, column in self._extensions.values()], axis=1)
        rows, first = np.unique(there, axis=0, return_index=True)
        names = list(self._extensions)
        return {
            tuple(n for n, here in zip(names, row, strict=True) if here): int(index)
            for row, index in zip(rows, first, strict=True)
        }

    def path(self, index: int, modality: Modality) -> Path:
        """File of one modality of a sample, which must have it."""
        return Path(self._file(index, modality))

    def _file(self, index: int, modality: Modality) -> str:
        kinds, column = self._extensions[modality.name]
        name, ending = self.name(index), self.suffix(modality) + kinds[int(column[index])]
        return f"{self._root}/{modality.data_folder}/{name}{ending}"

    def read(
        self,
        index: int,
        modality: Modality,
        patch_size: int = 1,
        *,
        verify: bool = False,
        fast: bool = False,
    ) -> Pixels:
        """Pixels of one modality of a sample; see :func:`multimae.images.readers.read`.

        Args:
            index: The sample.
            modality: The modality.
            patch_size: Smaller images are refused.
            verify: Compare packed images with their checksums.
            fast: Photographs are decoded when they are cut (:mod:`utils.data.fast_decode`).

        Raises:
            ImageError: The file is bad, or not what the modality declares.
        """
        path, pack = self._file(index, modality), self._packs.get(modality.name)
        stored: bytes | Array
        if pack is None:
            stored = read_bytes(path, modality)
        else:
            stored = pack.read(int(self._rows[modality.name][index]), verify)
        if fast:
            photo = as_photo(path, modality, stored, patch_size)
            if photo is not None:
                return photo
        if isinstance(stored, np.ndarray):
            return check_pixels(stored, path, modality, patch_size)
        return read_fast(path, modality, patch_size, stored)

    def _rows_in(self, m: Modality) -> npt.NDArray[np.int64]:
        """Where a packed modality has its images, by sample."""
        kinds, column = self._extensions[m.name]
        endings = {i: os.fsencode(self.suffix(m) + kind) for i, kind in enumerate(kinds)}
        codes = column.tolist()
        wanted = [key + endings.get(code, b"") for key, code in zip(self._keys, codes, strict=True)]
        return np.searchsorted(self._packs[m.name].names, np.array(wanted, np.bytes_))

    def _lack(
        self, key: str, folders: Mapping[str, Path], found: Mapping[str, Mapping[str, str]]
    ) -> tuple[Path, str]:
        """A file of an incomplete sample, and a message about those that are not there."""
        have = next(m for m in self.modalities if key in found[m.name])
        path = folders[have.name] / f"{key}{self.suffix(have)}{found[have.name][key]}"
        lacking = ", ".join(f"'{n}' ({folders[n]})" for n in found if key not in found[n])
        return path, f"{path}: no file of the same name for modality {lacking}."


class SamplePaths(Mapping[str, Path]):
    """Files of a sample by modality, for messages."""

    def __init__(self, folder: MultiModalFolder, index: int) -> None:
        """``index``: the sample."""
        self._folder, self._index = folder, index
        self._rows = {m.name: m for m in folder.modalities}

    def __getitem__(self, name: str) -> Path:
        """File of a modality."""
        return self._folder.path(self._index, self._rows[name])

    def __iter__(self) -> Iterator[str]:
        """The modalities."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Number of modalities."""
        return len(self._rows)


def _modality_folders(root: str | Path, modalities: Sequence[Modality]) -> dict[str, Path]:
    """Existing folder of every modality; all missing ones are reported at once."""
    if not str(root):
        raise UserError(f"data path is empty: give the folder that holds {LAYOUT}.")
    root = Path(root)
    if not root.exists():
        raise UserError(f"data path {root} does not exist. It must hold {LAYOUT}.")
    if not root.is_dir():
        raise UserError(f"data path {root} is not a folder. It must hold {LAYOUT}.")
    present = sorted(p.name for p in root.iterdir() if p.is_dir())
    if not present:
        raise UserError(f"data path {root} has no folders in it. It must hold {LAYOUT}.")
    problems = []
    for m in modalities:
        if m.data_folder not in present:
            near = did_you_mean(m.data_folder, present)
            problems.append(f"modality '{m.name}': no folder {root / m.data_folder}{near}")
    if problems:
        raise UserError(
            f"modality folders are missing:\n{bullet_list(problems)}\n"
            f"Folders in {root}: {', '.join(present)}. Create the missing ones, set `folder:` of "
            "the modality in the config, or drop the modality from the in/out domains."
        )
    return {m.name: root / m.data_folder for m in modalities}


def _refuse_incomplete(
    folders: Mapping[str, Path], found: Mapping[str, Mapping[str, str]], chosen: set[str]
) -> None:
    """Raise a UserError that says what each modality lacks of the ``chosen`` names."""
    problems = []
    for name, have in found.items():
        missing = chosen - have.keys()
        if missing:
            examples = ", ".join(nsmallest(3, missing)) + (", ..." if len(missing) > 3 else "")
            problems.append(
                f"'{name}' ({folders[name]}): {len(missing)} of {len(chosen)} missing: {examples}"
            )
    common = len(chosen.intersection(*found.values()))
    raise UserError(
        "file names do not match between the modalities:\n"
        f"{bullet_list(problems)}\n{common} names are complete. Each sample needs a file of the "
        "same sub-folder and name in every modality folder (extensions may differ): add the "
        "missing files, or remove those names from the other folders."
    )


def read_class_names(root: str | Path) -> tuple[str, ...] | None:
    """Class names by id from ``root/classes.json`` (``{"classes": ["void", "wall", ...]}``).

    Returns:
        The names, or ``None`` if there is no such file.

    Raises:
        UserError: The file exists but does not hold that.
    """
    path = Path(root) / CLASSES_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UserError(f"{path}: not readable as JSON ({err}). Mend or remove the file.") from err
    names = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UserError(f'{path}: expected {{"classes": ["name of id 0", "name of id 1", ...]}}.')
    return tuple(names)


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


def _scan(
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
