"""Aligned image folders: which files exist, which of them form a sample, and how they are read.

Layout: ``root/{modality folder}/{sub-folder}/{name}.{extension}``, or files directly in the
modality folder; a modality folder may be packed (:mod:`multimae.images.pack`). A sample is the
files of one ``sub-folder/name`` in all modality folders, with any extension. A missing file is an
error, or the sample is skipped; it never shifts the pairing of other samples.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from multimae.images.pack.layout import is_packed
from multimae.images.pixels import Array, Encoding, Pixels, checked
from multimae.images.readers import SUFFIXES, check_pixels, read_bytes, read_fast
from multimae.specs.coercion import did_you_mean
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.modalities import Modality

if TYPE_CHECKING:
    from multimae.images.pack.reading import PackedFolder

CLASSES_FILE = "classes.json"
"""Names of the classes of label images, by id; beside the modality folders."""
SETTINGS_FILE = "prepared.json"
"""Settings that the files of a modality were made with; beside them."""
LAYOUT = "root/{modality}/{sub-folder}/{name}.{extension}"
JPEG_SUFFIXES = (".jpg", ".jpeg")
"""A pack may hold JPEG files as pixels under these names only."""
_ABSENT = 255  # instead of the index of an extension


def stored_modalities(modalities: Sequence[Modality]) -> tuple[Modality, ...]:
    """Modalities that have files: those without a ``source``.

    Raises:
        ValueError: The source of a modality is not among ``modalities``.
    """
    stored = tuple(m for m in modalities if m.source is None)
    names = {m.name for m in stored}
    for m in modalities:
        if m.data_name not in names:
            raise ValueError(f"modality '{m.name}' is computed from '{m.source}': pass both")
    return stored


class MultiModalFolder:
    """Index of the samples under ``root``, in sorted order of their names.

    Attributes:
        root: Data root.
        modalities: Modalities that have files (see :func:`stored_modalities`).
        incomplete: For every skipped sample, one of its files and a message about missing ones.
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
            modalities: Modalities to pair; those with a ``source`` have no files.
            skip_incomplete: Skip samples that lack a file.
            allow_missing: Keep samples that lack a file; see :meth:`has`.

        Raises:
            UserError: Root or folders missing or empty, ambiguous names, or names that do not
                match; with ``skip_incomplete`` only if no sample is complete.
        """
        self.root = Path(root)
        self._root = os.fspath(self.root)
        self.modalities = stored_modalities(modalities)
        folders = _modality_folders(root, self.modalities)
        self._packs = {n: _open_pack(path) for n, path in folders.items() if is_packed(path)}
        self.ignored: dict[str, Counter[str]] = {}
        found = {
            m.name: _scan(
                folders[m.name],
                m.name,
                self.suffix(m),
                self._packs.get(m.name),
                self.ignored.setdefault(m.name, Counter()),
            )
            for m in self.modalities
        }
        self._found = {name: len(by_key) for name, by_key in found.items()}
        _refuse_look_alikes(found)
        # Select among the names of any modality, as missing files must not change the subset.
        selected = set(self.select(sorted(set().union(*found.values()))))
        complete = selected if allow_missing else selected.intersection(*found.values())
        self.incomplete: list[tuple[Path, str]] = []
        if len(complete) < len(selected):
            if not (skip_incomplete and complete):
                _refuse_incomplete(folders, found, selected)
            self.incomplete = [
                self._missing_files(k, folders, found) for k in sorted(selected - complete)
            ]
        # Flat buffers: Python strings would be copied to every worker, page by page, as their
        # reference counts change.
        keys = sorted(map(os.fsencode, complete))
        self._keys: npt.NDArray[np.bytes_] = np.array(keys, dtype=np.bytes_)
        names = list(map(os.fsdecode, keys))
        self._extensions = {name: _index_extensions(found[name], names) for name in found}
        self._pack_indices = {
            m.name: self._indices_in_pack(m) for m in self.modalities if m.name in self._packs
        }

    def ignored_lines(self) -> list[str]:
        """For every modality with ignored files: how many are used, and why others are not."""
        lines = []
        for name, reasons in self.ignored.items():
            used = len(self) if all(self._found.values()) else self._found[name]
            unused = Counter(reasons)
            unused["not selected or without partner"] = max(0, self._found[name] - used)
            total = self._found[name] + reasons.total()
            counts = ", ".join(f"{n} {reason}" for reason, n in unused.most_common() if n)
            if counts:
                lines.append(f"{self.root / name}: {used} of {total} files used: {counts} ignored")
        return lines

    def suffix(self, modality: Modality) -> str:
        """Ending of every file name of a modality, before the extension."""
        return ""

    def select(self, names: list[str]) -> list[str]:
        """Names that belong to this set, of the sorted ``sub-folder/name`` of all samples."""
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
        """Combinations of modalities that samples have, and the first sample with each."""
        present = np.stack([column != _ABSENT for _, column in self._extensions.values()], axis=1)
        patterns, first = np.unique(present, axis=0, return_index=True)
        names = list(self._extensions)
        return {
            tuple(n for n, has in zip(names, pattern, strict=True) if has): int(index)
            for pattern, index in zip(patterns, first, strict=True)
        }

    def path(self, index: int, modality: Modality) -> Path:
        """File of one modality of a sample, which must have it."""
        return Path(self._file(index, modality))

    def _file(self, index: int, modality: Modality) -> str:
        extensions, column = self._extensions[modality.name]
        name, ending = self.name(index), self.suffix(modality) + extensions[int(column[index])]
        return f"{self._root}/{modality.data_folder}/{name}{ending}"

    def read(
        self,
        index: int,
        modality: Modality,
        patch_size: int = 1,
        *,
        fast: bool = False,
    ) -> Pixels:
        """Pixels of one modality of a sample; see :func:`multimae.images.readers.read`.

        Args:
            index: The sample.
            modality: The modality.
            patch_size: Smaller images are refused.
            fast: Decode photos only when a view is cut (:mod:`multimae.images.fast_decode`).

        Raises:
            ImageError: The file is bad, or not what the modality declares.
        """
        path, pack = self._file(index, modality), self._packs.get(modality.name)
        stored: bytes | Array
        if pack is None:
            stored = read_bytes(path, modality)
        else:
            stored = pack.read(int(self._pack_indices[modality.name][index]))
        if fast:
            from multimae.images.fast_decode import lazy_photo  # needs PyTorch

            photo = lazy_photo(path, modality, stored, patch_size)
            if photo is not None:
                return photo
        if isinstance(stored, np.ndarray):
            if path.lower().endswith(JPEG_SUFFIXES) and (
                modality.is_labels or modality.no_data is not None
            ):
                return checked(Image.fromarray(stored), path, modality, Encoding(lossy=True))
            return check_pixels(stored, path, modality, patch_size)
        return read_fast(path, modality, patch_size, stored)

    def packed_original(self, index: int, modality: Modality) -> bytes | None:
        """Original bytes of a packed file; ``None`` if it is not packed.

        Raises:
            ImageError: The original is missing or damaged.
        """
        pack = self._packs.get(modality.name)
        if pack is None:
            return None
        return pack.original(int(self._pack_indices[modality.name][index]))

    def _indices_in_pack(self, m: Modality) -> npt.NDArray[np.int64]:
        """Index of every sample's image in the pack of a modality."""
        extensions, column = self._extensions[m.name]
        endings = {i: os.fsencode(self.suffix(m) + ext) for i, ext in enumerate(extensions)}
        pairs = zip(self._keys, column.tolist(), strict=True)
        names = [key + endings.get(i, b"") for key, i in pairs]
        return np.searchsorted(self._packs[m.name].names, np.array(names, np.bytes_))

    def _missing_files(
        self, key: str, folders: Mapping[str, Path], found: Mapping[str, Mapping[str, str]]
    ) -> tuple[Path, str]:
        """A file of an incomplete sample, and a message about its missing ones."""
        have = next(m for m in self.modalities if key in found[m.name])
        path = folders[have.name] / f"{key}{self.suffix(have)}{found[have.name][key]}"
        missing = ", ".join(f"'{n}' ({folders[n]})" for n in found if key not in found[n])
        return path, f"{path}: no file of the same name for modality {missing}."


class SamplePaths(Mapping[str, Path]):
    """Files of a sample by modality, for messages."""

    def __init__(self, folder: MultiModalFolder, index: int) -> None:
        """``index``: the sample."""
        self._folder, self._index = folder, index
        self._modalities = {m.name: m for m in folder.modalities}

    def __getitem__(self, name: str) -> Path:
        """File of a modality."""
        return self._folder.path(self._index, self._modalities[name])

    def __iter__(self) -> Iterator[str]:
        """The modalities."""
        return iter(self._modalities)

    def __len__(self) -> int:
        """Number of modalities."""
        return len(self._modalities)


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


def _refuse_look_alikes(found: Mapping[str, Mapping[str, str]]) -> None:
    """Raise a UserError if names of modalities differ only in the Unicode form of letters."""
    everywhere = set.intersection(*map(set, found.values()))
    forms: dict[str, set[str]] = {}
    for key in set().union(*found.values()) - everywhere:
        if not key.isascii():
            forms.setdefault(unicodedata.normalize("NFC", key), set()).add(key)
    pairs = [" and ".join(map(ascii, sorted(keys))) for keys in forms.values() if len(keys) > 1]
    if pairs:
        raise UserError(
            "names that look alike differ in their Unicode form (NFC, NFD), so that their files "
            f"do not form samples:\n{bullet_list(sorted(pairs))}\nRename them to one form, for "
            "example with `convmv -r -f utf8 -t utf8 --nfc`."
        )


def _refuse_incomplete(
    folders: Mapping[str, Path], found: Mapping[str, Mapping[str, str]], selected: set[str]
) -> None:
    """Raise a UserError with the ``selected`` names that each modality lacks."""
    problems = []
    for name, have in found.items():
        missing = selected - have.keys()
        if missing:
            examples = ", ".join(nsmallest(3, missing)) + (", ..." if len(missing) > 3 else "")
            problems.append(
                f"'{name}' ({folders[name]}): {len(missing)} of {len(selected)} missing: {examples}"
            )
    common = len(selected.intersection(*found.values()))
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
        raise UserError(f"{path}: not readable as JSON ({err}). Fix or remove the file.") from err
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
    found = {f: _listed(root / f) for f in folders if f[0] != "."}
    if not any(found.values()):
        raise UserError(f"data path {root} holds no images. The layout is {LAYOUT}.")
    return {folder: names for folder, names in found.items() if names}


def _index_extensions(
    by_key: Mapping[str, str], names: list[str]
) -> tuple[list[str], npt.NDArray[np.uint8]]:
    """Distinct extensions of a modality's files, and which one each name has, or ``_ABSENT``."""
    extensions = sorted({by_key[k] for k in names if k in by_key})
    index_of = {ext: i for i, ext in enumerate(extensions)}
    indices = (index_of[by_key[k]] if k in by_key else _ABSENT for k in names)
    return extensions, np.fromiter(indices, np.uint8, len(names))


def _open_pack(folder: Path) -> PackedFolder:
    from multimae.images.pack.reading import PackedFolder  # plain folders do not load it

    return PackedFolder(folder)


def _listed(folder: Path) -> list[bytes]:
    if is_packed(folder):
        names: list[bytes] = _open_pack(folder).names.tolist()
        return names
    return sorted(map(os.fsencode, _images(folder, folder.name)))


def sub_folders(folder: Path) -> list[str]:
    """Sorted names of the sub-folders of a modality folder, plain or packed."""
    if is_packed(folder):
        names = _open_pack(folder).names
        return sorted({os.fsdecode(name).partition("/")[0] for name in names if b"/" in name})
    return sorted(p.name for p in folder.iterdir() if p.is_dir())


def _scan(
    folder: Path, modality: str, ending: str, pack: PackedFolder | None, unreadable: Counter[str]
) -> dict[str, str]:
    """Map ``sub-folder/name`` to the extension of every image.

    Args:
        folder: Of the modality.
        modality: For messages.
        ending: Ending of the names to keep; it is stripped.
        pack: Pack of the folder, if it is packed.
        unreadable: Ignored files are counted here, by reason.

    Raises:
        UserError: No images, or the same name twice.
    """
    found: dict[str, str] = {}
    clashes: list[str] = []
    packed = range(0 if pack is None else len(pack))
    names = _images(folder, modality, unreadable) if pack is None else map(pack.name, packed)
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
            f"{_without_reader(unreadable)}.\nThe layout is "
            f"{LAYOUT} with sub-folders of any depth; extensions: {', '.join(sorted(SUFFIXES))}."
        )
    return found


def _without_reader(unreadable: Counter[str]) -> str:
    """Part of a message: files of a folder that have no reader, by extension."""
    if not unreadable:
        return ""
    counts = ", ".join(f"{count} '{suffix}'" for suffix, count in unreadable.most_common(3))
    return f"; there is no reader for its files: {counts}. Convert them (.npy holds any array)"


def _images(folder: Path, modality: str, ignored: Counter[str] | None = None) -> Iterator[str]:
    """``sub-folder/name.extension`` of every image at any depth, without a stat per file.

    Other files are counted in ``ignored``, by reason: an extension, or words.
    """
    ignored = Counter() if ignored is None else ignored
    pending: list[tuple[str, str, tuple[str, ...]]] = [("", str(folder), ())]
    for prefix, path, above in pending:
        above = (*above, os.path.realpath(path))
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    stem, dot, suffix = entry.name.rpartition(".")
                    if entry.name.startswith("."):
                        ignored["hidden"] += 1
                    elif entry.is_dir():
                        if os.path.realpath(entry.path) not in above:  # a link to a folder above
                            pending.append((f"{prefix}{entry.name}/", entry.path, above))
                    elif not (entry.is_file() or entry.is_symlink() and not os.path.exists(entry)):
                        ignored["not regular files"] += 1
                    elif stem and (dot + suffix).lower() in SUFFIXES:
                        yield prefix + entry.name
                    elif entry.name != SETTINGS_FILE:
                        ignored[dot + suffix if stem and dot else "without extension"] += 1
        except OSError as err:
            raise UserError(f"modality '{modality}': cannot list {path} ({err.strerror}).") from err
