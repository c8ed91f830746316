"""Aligned image folders: which files exist, which of them form a sample, and how they are read.

Layout: ``root/{modality folder}/{sub-folder}/{name}.{extension}``, or files directly in the
modality folder; a modality folder may be packed (:mod:`multimae.images.pack`). A sample is the
files of one ``sub-folder/name`` in all modality folders, with any extension. A missing file is an
error, or the sample is skipped; it never shifts the pairing of other samples.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multimae.images.index.listing import (
    ABSENT,
    LAYOUT,
    FindIndex,
    Listing,
    Names,
    SampleIndex,
    list_folder,
    list_now,
    merge,
    paired,
)
from multimae.images.pack import PACK_FILE, AnyPath, is_packed, to_path
from multimae.images.pixels import Array, Encoding, Pixels, check_encoding
from multimae.images.readers import SUFFIXES, check_pixels, read_bytes, read_fast
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality

if TYPE_CHECKING:
    from multimae.images.pack.reading import PackedFolder

CLASSES_FILE = "classes.json"
"""Names of the classes of label images, by id; next to the modality folders."""
_INDEX_VERSION = 1
JPEG_SUFFIXES = (".jpg", ".jpeg")
"""A pack may hold JPEG files as pixels under these names only."""


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
        root: str | AnyPath,
        modalities: Sequence[Modality],
        *,
        skip_incomplete: bool = False,
        allow_missing: bool = False,
        find: FindIndex = list_now,
    ) -> None:
        """Scan the folders once.

        Args:
            root: Data root.
            modalities: Modalities to pair; those with a ``source`` have no files.
            skip_incomplete: Skip samples that lack a file.
            allow_missing: Keep samples that lack a file; see :meth:`has`.
            find: Finds the index of an earlier scan, or lists.

        Raises:
            UserError: Root or folders missing or empty, ambiguous names, or names that do not
                match; with ``skip_incomplete`` only if no sample is complete.
        """
        self.root = to_path(root)
        self._root = str(self.root)
        self.modalities = stored_modalities(modalities)
        self._folders = _modality_folders(root, self.modalities)
        self._packs: dict[str, PackedFolder] = {}
        key = self._key(skip_incomplete, allow_missing)
        self._index = find(key, lambda: self._list(skip_incomplete, allow_missing))
        if self._index.entry is not None:
            packed = ((n, path) for n, path in self._folders.items() if is_packed(path))
            self._packs = {n: open_pack(path, check_first=0) for n, path in packed}
        self.incomplete = [(to_path(path), problem) for path, problem in self._index.incomplete]

    def _key(self, *options: bool) -> str:
        """Key of what :meth:`_list` depends on, except for the contents of the folders."""
        files = [(m.name, m.data_folder, self.suffix(m)) for m in self.modalities]
        remote = (path for path in self._folders.values() if not isinstance(path, Path))
        contents = [(path / PACK_FILE).read_bytes() for path in remote]  # no stamp tells a change
        place = os.path.realpath(self._root)
        parts = (_INDEX_VERSION, place, files, options, self.selection, *contents)
        return blake2b(ascii((parts, sorted(SUFFIXES))).encode(), digest_size=16).hexdigest()

    def _list(self, skip_incomplete: bool, allow_missing: bool) -> SampleIndex:
        """List the folders and pair their files."""
        packed = ((n, path) for n, path in self._folders.items() if is_packed(path))
        self._packs = {n: open_pack(path) for n, path in packed}
        listings: dict[str, Listing] = {}
        for m in self.modalities:
            listings[m.name] = found = self._listing(m)
            first = next(iter(listings.values()))
            if np.array_equal(first.names.text, found.names.text):
                found.names = first.names  # frees the copy
        names, positions = merge([listing.names for listing in listings.values()])
        present = positions >= 0
        everywhere = np.all(present, axis=0)
        if not everywhere.all():
            from multimae.images.index.listing_errors import refuse_look_alikes

            refuse_look_alikes(names, ~everywhere)
        # Select among the names of any modality, as missing files must not change the subset.
        selected = self._selected(names)
        complete = selected if allow_missing else selected & everywhere
        incomplete = np.flatnonzero(selected & ~complete)
        if len(incomplete) and not (skip_incomplete and complete.any()):
            from multimae.images.index.listing_errors import refuse_incomplete

            refuse_incomplete(self._folders, names, present, selected)
        problems = [
            self._missing_files(os.fsdecode(names[i]), listings, positions[:, i])
            for i in incomplete.tolist()
        ]
        return paired(listings, set(self._packs), names, positions, complete, problems)

    def _listing(self, m: Modality) -> Listing:
        """Images of a modality."""
        pack, folder, ending = self._packs.get(m.name), self._folders[m.name], self.suffix(m)
        if pack is None:
            found = list_folder(folder, m.name, ending)
        else:
            from multimae.images.pack.names import list_pack  # plain folders do not load it

            found = list_pack(pack, ending)
        found.check(folder, m.name)
        return found

    def _selected(self, names: Names) -> npt.NDArray[np.bool_]:
        """(N,) names that :meth:`select` keeps."""
        if type(self).select is MultiModalFolder.select:
            return np.ones(len(names), bool)
        selected = set(self.select([os.fsdecode(name) for name in names]))
        return np.fromiter((os.fsdecode(name) in selected for name in names), bool, len(names))

    def ignored_lines(self) -> list[str]:
        """For every modality with ignored files: how many are used, and why others are not."""
        lines = []
        for name, reasons in self._index.ignored.items():
            found = self._index.found[name]
            unused = Counter(reasons)
            unused["not selected or without partner"] = max(0, found - len(self))
            total, used = found + reasons.total(), min(found, len(self))
            counts = ", ".join(f"{n} {reason}" for reason, n in unused.most_common() if n)
            if counts:
                lines.append(
                    f"{self._folders[name]}: {used} of {total} files used: {counts} ignored"
                )
        return lines

    def suffix(self, modality: Modality) -> str:
        """Ending of every file name of a modality, before the extension."""
        return modality.suffix

    @property
    def selection(self) -> object:
        """What :meth:`select` depends on; its ``repr`` tells selections apart."""
        return None

    def select(self, names: list[str]) -> list[str]:
        """Names that belong to this set, of the sorted ``sub-folder/name`` of all samples."""
        return names

    def __getstate__(self) -> dict[str, object]:
        """Drop a mapped index, which a spawned worker maps by itself."""
        entry = self._index.entry
        return {**self.__dict__, "_index": self._index if entry is None else entry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the index."""
        self.__dict__.update(state)
        if isinstance(self._index, Path):
            from multimae.images.index.index_cache import load

            self._index = load(self._index)

    @property
    def parts(self) -> tuple[MultiModalFolder, ...]:
        """The data roots that form this set, each with its samples."""
        return (self,)

    @property
    def times_per_epoch(self) -> tuple[float, ...]:
        """How often a sample of each part is used in an epoch, on average."""
        return (1.0,)

    def part_of(self, index: int) -> int:
        """Which part has a sample."""
        return 0

    def spread(self, count: int) -> list[int]:
        """At most ``count`` samples, evenly spaced."""
        return spread_indices(len(self), count)

    @property
    def modality_folders(self) -> tuple[AnyPath, ...]:
        """Folders of the stored modalities."""
        return tuple(self._folders.values())

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._index.names)

    def name(self, index: int) -> str:
        """``sub-folder/name`` of a sample."""
        return os.fsdecode(self._index.names[index])

    @property
    def digest(self) -> str:
        """Checksum of all names, each followed by NUL."""
        return self._index.digest

    def has(self, index: int, modality: Modality) -> bool:
        """Whether a sample has a file of a modality; always, unless ``allow_missing``."""
        return bool(self._index.kinds[modality.name][index] != ABSENT)

    def patterns(self) -> dict[tuple[str, ...], int]:
        """Combinations of modalities that samples have, and the first sample with each."""
        names, found = list(self._index.kinds), {}
        codes = np.zeros(len(self), np.uint32)
        for i, column in enumerate(self._index.kinds.values()):
            codes |= (column != ABSENT).astype(np.uint32) << np.uint32(i)
        for code, index in zip(*np.unique(codes, return_index=True), strict=True):
            found[tuple(n for i, n in enumerate(names) if code >> i & 1)] = int(index)
        return found

    def path(self, index: int, modality: Modality) -> AnyPath:
        """File of one modality of a sample, which must have it."""
        return to_path(self._file(index, modality))

    def files(self, index: int) -> dict[str, str]:
        """Files of a sample by modality, those that it has."""
        return {m.name: self._file(index, m) for m in self.modalities if self.has(index, m)}

    def _file(self, index: int, modality: Modality) -> str:
        kind = int(self._index.kinds[modality.name][index])
        ending = self.suffix(modality) + self._index.extensions[modality.name][kind]
        return f"{self._root}/{modality.data_folder}/{self.name(index)}{ending}"

    def _in_pack(self, index: int, modality: Modality) -> int:
        """Index of an image in the pack of its modality."""
        indices = self._index.in_pack[modality.name]
        return index if indices is None else int(indices[index])

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
            stored = pack.read(self._in_pack(index, modality))
        if fast:
            from multimae.images.fast_decode import lazy_photo  # needs PyTorch

            photo = lazy_photo(path, modality, stored, patch_size)
            if photo is not None:
                return photo
        if isinstance(stored, np.ndarray):
            if path.lower().endswith(JPEG_SUFFIXES):
                check_encoding(Encoding(lossy=True), "JPEG", path, modality)
            return check_pixels(stored, path, modality, patch_size)
        return read_fast(path, modality, patch_size, stored)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch samples of remote packs concurrently, before they are read one by one."""
        for m in () if isinstance(self.root, Path) else self.modalities:
            wanted = (self._in_pack(i, m) for i in indices if self.has(i, m))
            self._packs[m.name].prefetch(wanted)

    def packed_original(self, index: int, modality: Modality) -> bytes | None:
        """Original bytes of a packed file; ``None`` if it is not packed.

        Raises:
            ImageError: The original is missing or damaged.
        """
        pack = self._packs.get(modality.name)
        if pack is None:
            return None
        return pack.original(self._in_pack(index, modality))

    def _missing_files(
        self, key: str, listings: Mapping[str, Listing], positions: npt.NDArray[np.int64]
    ) -> tuple[str, str]:
        """A file of an incomplete sample, and a message about its missing ones."""
        at = dict(zip(listings, positions.tolist(), strict=True))
        have = next(m for m in self.modalities if at[m.name] >= 0)
        listing = listings[have.name]
        extension = listing.extensions[listing.kinds[at[have.name]]]
        path = self._folders[have.name] / f"{key}{self.suffix(have)}{extension}"
        missing = ", ".join(f"'{n}' ({self._folders[n]})" for n, i in at.items() if i < 0)
        return str(path), f"{path}: no file of the same name for modality {missing}."


def _modality_folders(root: str | AnyPath, modalities: Sequence[Modality]) -> Mapping[str, AnyPath]:
    """Existing folder of every modality; all missing ones are reported at once."""
    if not str(root):
        raise UserError(f"data path is empty: give the folder that holds {LAYOUT}.")
    root = to_path(root)
    if not isinstance(root, Path):
        from multimae.images.pack.remote import find_packs

        return find_packs(root, modalities)
    folders = {m.name: root / m.data_folder for m in modalities}
    if not all(folder.is_dir() for folder in folders.values()):
        from multimae.images.index.listing_errors import refuse_folders

        refuse_folders(root, modalities)
    return folders


def read_class_names(root: str | AnyPath) -> tuple[str, ...] | None:
    """Class names by id from ``root/classes.json`` (``{"classes": ["void", "wall", ...]}``).

    Returns:
        The names, or ``None`` if there is no such file.

    Raises:
        UserError: The file exists but does not hold that.
    """
    path = to_path(root) / CLASSES_FILE
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


def open_pack(folder: AnyPath, *, check_first: int | None = None) -> PackedFolder:
    """Open the pack of a modality folder; check its index, or the first files in it."""
    if not isinstance(folder, Path):
        from multimae.images.pack.remote import RemotePack

        return RemotePack(folder, check_first=check_first)
    from multimae.images.pack.reading import PackedFolder  # plain folders do not load it

    return PackedFolder(folder, check_first=check_first)


def spread_indices(total: int, count: int) -> list[int]:
    """At most ``count`` evenly spaced indices below ``total``."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def sub_folders(folder: AnyPath) -> list[str]:
    """Sorted names of the sub-folders of a modality folder, plain or packed."""
    if not isinstance(folder, Path) or is_packed(folder):
        names = open_pack(folder).names
        return sorted({os.fsdecode(name).partition("/")[0] for name in names if b"/" in name})
    return sorted(p.name for p in folder.iterdir() if p.is_dir())
