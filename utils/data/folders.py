"""Aligned image folders: which files exist, and which of them belong to one sample.

Layout: ``root/{modality folder}/{sub-folder}/{name}.{extension}``, or files directly in the
modality folder. A sample is the files of one ``sub-folder/name`` in all modality folders, whatever
their extensions; a file missing somewhere is an error, or leaves the sample out if that is asked
for, and never shifts the pairing of the rest.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae.modalities import Modality
from multimae.readers import SUFFIXES
from utils.errors import UserError, bullet_list

EXTENSIONS = SUFFIXES
_ABSENT = 255  # code of an extension
CLASSES_FILE = "classes.json"
SETTINGS_FILE = "prepared.json"
"""What the files of a modality were made with; beside them."""
_LAYOUT = "root/{modality}/{sub-folder}/{name}.{extension}"


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
        self.modalities = readable(modalities)
        folders = _modality_folders(root, self.modalities)
        found = {m.name: _scan(folders[m.name], m.name, self.suffix(m)) for m in self.modalities}
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
        kinds, column = self._extensions[modality.name]
        ending = self.suffix(modality) + kinds[int(column[index])]
        return self.root.joinpath(modality.data_folder, self.name(index) + ending)

    def _lack(
        self, key: str, folders: Mapping[str, Path], found: Mapping[str, Mapping[str, str]]
    ) -> tuple[Path, str]:
        """A file of an incomplete sample, and a message about those that are not there."""
        have = next(m for m in self.modalities if key in found[m.name])
        path = folders[have.name] / f"{key}{self.suffix(have)}{found[have.name][key]}"
        lacking = ", ".join(f"'{n}' ({folders[n]})" for n in found if key not in found[n])
        return path, f"{path}: no file of the same name for modality {lacking}."


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


def _modality_folders(root: str | Path, modalities: Sequence[Modality]) -> dict[str, Path]:
    """Existing folder of every modality; all missing ones are reported at once."""
    if not str(root):
        raise UserError(f"data path is empty: give the folder that holds {_LAYOUT}.")
    root = Path(root)
    if not root.exists():
        raise UserError(f"data path {root} does not exist. It must hold {_LAYOUT}.")
    if not root.is_dir():
        raise UserError(f"data path {root} is not a folder. It must hold {_LAYOUT}.")
    present = sorted(p.name for p in root.iterdir() if p.is_dir())
    if not present:
        raise UserError(f"data path {root} has no folders in it. It must hold {_LAYOUT}.")
    problems = []
    for m in modalities:
        if m.data_folder not in present:
            near = get_close_matches(m.data_folder, present, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            problems.append(f"modality '{m.name}': no folder {root / m.data_folder}{hint}")
    if problems:
        raise UserError(
            f"modality folders are missing:\n{bullet_list(problems)}\n"
            f"Folders in {root}: {', '.join(present)}. Create the missing ones, set `folder:` of "
            "the modality in the config, or drop the modality from the in/out domains."
        )
    return {m.name: root / m.data_folder for m in modalities}


def _scan(folder: Path, modality: str, ending: str = "") -> dict[str, str]:
    """``{sub-folder/name: extension}`` of every image, without a stat per file.

    Names must end with ``ending``, which is taken off; others are passed over.
    """
    found: dict[str, str] = {}
    clashes: list[str] = []
    unread: Counter[str] = Counter()
    pending = [("", str(folder))]
    for prefix, path in pending:
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    stem, dot, suffix = entry.name.rpartition(".")
                    if entry.name.startswith("."):
                        continue
                    if stem and (dot + suffix).lower() in EXTENSIONS:
                        if not stem.endswith(ending):
                            continue
                        key = prefix + stem.removesuffix(ending)
                        if key in found:
                            clashes.append(f"{folder / key}: {found[key]} and {dot + suffix}")
                        found[key] = dot + suffix
                    elif not prefix and entry.is_dir():
                        pending.append((f"{entry.name}/", entry.path))
                    elif stem and dot:
                        unread[dot + suffix] += 1
        except OSError as err:
            raise UserError(f"modality '{modality}': cannot list {path} ({err.strerror}).") from err
    if clashes:
        raise UserError(
            f"modality '{modality}': the same name with two extensions is ambiguous:\n"
            f"{bullet_list(sorted(clashes))}\nKeep one file of each."
        )
    if not found:
        raise UserError(
            f"modality '{modality}': no images in {folder} or its sub-folders"
            f"{_without_reader(unread)}.\nThe layout is "
            f"{_LAYOUT} with one level of sub-folders; extensions: {', '.join(sorted(EXTENSIONS))}."
        )
    return found


def _without_reader(unread: Counter[str]) -> str:
    """The files of a folder that nothing reads, by extension."""
    if not unread:
        return ""
    counts = ", ".join(f"{count} '{suffix}'" for suffix, count in unread.most_common(3))
    return f"; there is no reader for its files: {counts}. Convert them (.npy holds any array)"


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
