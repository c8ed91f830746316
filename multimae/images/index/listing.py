"""Names of image files as flat arrays: listing of folders, pairing of modalities.

A Python string per file would take ten times the memory. Reference counts would copy it to every
loader worker, page by page.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multimae.images.pack import AnyPath
from multimae.images.readers import SUFFIXES
from multimae.specs.errors import UserError

SETTINGS_FILE = "prepared.json"
"""Settings that the files of a modality were made with; beside them."""
LAYOUT = "root/{modality}/{sub-folder}/{name}.{extension}"
ABSENT = 255
"""Instead of the index of an extension: the sample lacks the modality."""
BLOCK = 2**16  # names handled at a time
_DOT = b"."[0]

Stamp = tuple[bytes, int, int, int]
"""A folder or file that was read: path, mtime and ctime in ns, inode."""


def stamp_of(path: bytes) -> Stamp:
    """Stamp of a folder or file."""
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@dataclass(frozen=True, eq=False)
class Names(Sequence[bytes]):
    """Sorted byte strings in one buffer.

    Attributes:
        text: uint8, all names, each followed by NUL.
        starts: (N + 1,) offset of every name, and the size of ``text``.
    """

    text: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.unsignedinteger]

    @classmethod
    def from_text(cls, text: bytes | bytearray | npt.NDArray[np.uint8]) -> Names:
        """Split at NUL."""
        flat = text if isinstance(text, np.ndarray) else np.frombuffer(text, np.uint8)
        size = np.uint32 if len(flat) < 2**32 else np.uint64
        parts = [np.zeros(1, size)]
        for first in range(0, len(flat), 2**24):
            ends = np.flatnonzero(flat[first : first + 2**24] == 0)
            parts.append((ends + (first + 1)).astype(size))
        return cls(flat, np.concatenate(parts))

    def __len__(self) -> int:
        """Number of names."""
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        """One name."""
        start, stop = int(self.starts[index]), int(self.starts[index + 1])
        return self.text[start : stop - 1].tobytes()

    def padded(self, first: int, stop: int) -> npt.NDArray[np.bytes_]:
        """Some of the names as an array of byte strings of one width."""
        starts = self.starts[first : stop + 1].astype(np.int64)
        sizes = np.diff(starts)
        rows = np.zeros((len(sizes), int(sizes.max(initial=1))), np.uint8)
        rows[np.arange(rows.shape[1]) < sizes[:, None]] = self.text[starts[0] : starts[-1]]
        return rows.view(f"S{rows.shape[1]}")[:, 0]

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges that cover all names."""
        for first in range(0, len(self), BLOCK):
            yield first, min(first + BLOCK, len(self))

    def where(self, mask: npt.NDArray[np.bool_]) -> Names:
        """The names that ``mask`` (N,) selects."""
        if mask.all():
            return self
        kept = []
        for first, stop in self.blocks():
            starts = self.starts[first : stop + 1].astype(np.int64)
            text = self.text[starts[0] : starts[-1]]
            kept.append(text[np.repeat(mask[first:stop], np.diff(starts))])
        return Names.from_text(np.concatenate(kept) if kept else np.zeros(0, np.uint8))

    def digest(self) -> str:
        """Checksum of all names."""
        return blake2b(self.text.data, digest_size=16).hexdigest()


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """Which samples a data set has, and the files of each.

    Attributes:
        names: ``sub-folder/name``, sorted.
        extensions: By modality: distinct extensions, with the dot.
        kinds: By modality: (N,) index in ``extensions`` of every sample, or :data:`ABSENT`.
        in_pack: By packed modality: (N,) index in the pack; ``None`` if it is that of the sample.
        found: By modality: number of images.
        ignored: By modality: other files, counted by reason.
        incomplete: For every skipped sample, one of its files and a message about missing ones.
        digest: Checksum of the names.
        stamps: Every folder and file that was read; empty if some have no stamp.
        entry: Where the arrays are mapped from (:mod:`multimae.images.index.index_cache`).
    """

    names: Names
    extensions: dict[str, list[str]]
    kinds: dict[str, npt.NDArray[np.uint8]]
    in_pack: dict[str, npt.NDArray[np.int64] | None]
    found: dict[str, int]
    ignored: dict[str, Counter[str]]
    incomplete: list[tuple[str, str]]
    digest: str
    stamps: list[Stamp] = field(default_factory=list)
    entry: Path | None = None

    @property
    def num_files(self) -> int:
        """Images of all modalities."""
        return sum(self.found.values())


FindIndex = Callable[[str, Callable[[], SampleIndex]], SampleIndex]
"""Finds the index with a key, or calls the function, which lists the samples."""


def list_now(key: str, list_samples: Callable[[], SampleIndex]) -> SampleIndex:
    """A :data:`FindIndex` that keeps nothing."""
    return list_samples()


@dataclass
class Listing:
    """Images of one modality.

    Attributes:
        names: ``sub-folder/name``.
        extensions: Distinct extensions, with the dot.
        kinds: (N,) index in ``extensions`` of every name.
        ignored: Other files, counted by reason: an extension, or words.
        stamps: What was read.
        clashes: ``(name, extension)`` of further files of the same name.
        order: (N,) index in the pack of every name; ``None`` if it is that in ``names``.
    """

    names: Names
    extensions: list[str]
    kinds: npt.NDArray[np.uint8]
    ignored: Counter[str] = field(default_factory=Counter)
    stamps: list[Stamp] = field(default_factory=list)
    clashes: list[tuple[bytes, bytes]] = field(default_factory=list)
    order: npt.NDArray[np.int64] | None = None

    def in_pack(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Indices in the pack of some of the names."""
        return indices if self.order is None else self.order[indices]

    def files(self) -> Iterator[bytes]:
        """``sub-folder/name.extension`` of every image."""
        endings = list(map(os.fsencode, self.extensions))
        yield from (n + endings[k] for n, k in zip(self.names, self.kinds.tolist(), strict=True))
        yield from (name + ending for name, ending in self.clashes)

    def check(self, folder: AnyPath, modality: str) -> None:
        """Raise a UserError if there are no images, or the same name twice."""
        if self.clashes or not len(self.names):
            from multimae.images.index.listing_errors import refuse_listing

            refuse_listing(self, folder, modality)


def list_folder(folder: AnyPath, modality: str, ending: str = "") -> Listing:
    """List the images of a folder at any depth, without a stat per file.

    Args:
        folder: Of the modality.
        modality: For messages.
        ending: Ending of the names to keep, before the extension; it is stripped.

    Raises:
        UserError: A folder cannot be listed.
    """
    lister = _Lister(os.fsencode(str(folder)), modality, os.fsencode(ending))
    lister.run()
    names = Names.from_text(lister.text)
    extensions = [os.fsdecode(b"." + extension) for extension in lister.kinds]
    kinds = np.frombuffer(lister.found, np.uint8)
    return Listing(names, extensions, kinds, lister.ignored, lister.stamps, lister.clashes)


class _Folder:
    """A folder whose files have been listed and whose sub-folders are being listed."""

    def __init__(self, prefix: bytes, above: tuple[tuple[int, int], ...]) -> None:
        self.prefix, self.above = prefix, above  # (device, inode) of the folders above, and its own
        self.images: dict[bytes, int] = {}
        self.names: list[bytes] = []
        self.folders: list[bytes] = []
        self.written = 0


class _Lister:
    """Lists folders depth first, in the order of the full names."""

    def __init__(self, root: bytes, modality: str, ending: bytes) -> None:
        self.root, self.modality, self.ending = root, modality, ending
        self.text, self.found = bytearray(), bytearray()
        self.kinds: dict[bytes, int] = {}
        self.ignored: Counter[str] = Counter()
        self.stamps: list[Stamp] = []
        self.clashes: list[tuple[bytes, bytes]] = []

    def run(self) -> None:
        """List the root."""
        stack = [folder for folder in [self._list(b"", ())] if folder]
        while stack:
            top = stack[-1]
            if not top.folders:
                self._write(top, len(top.names))
                stack.pop()
                continue
            name = top.folders.pop() + b"/"
            self._write(top, bisect_left(top.names, name))
            below = self._list(top.prefix + name, top.above)
            if below is not None:
                stack.append(below)

    def _write(self, folder: _Folder, stop: int) -> None:
        """Append the names of a folder up to ``stop``."""
        names = folder.names[folder.written : stop] if folder.written else folder.names[:stop]
        if names:
            self.text += folder.prefix + (b"\0" + folder.prefix).join(names) + b"\0"
            self.found += bytes(map(folder.images.__getitem__, names))
        folder.written = stop

    def _list(self, prefix: bytes, above: tuple[tuple[int, int], ...]) -> _Folder | None:
        """Read a folder; ``None`` for a link to a folder above."""
        path = self.root + b"/" + prefix if prefix else self.root
        try:
            status = os.stat(path)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                return None
            self.stamps.append((path, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
            folder = _Folder(prefix, (*above, identity))
            self._read(path, folder)
        except OSError as err:
            raise UserError(
                f"modality '{self.modality}': cannot list {os.fsdecode(path)} ({err.strerror})."
            ) from err
        if self.ending:
            size = len(self.ending)
            kept = ((k, v) for k, v in folder.images.items() if k.endswith(self.ending))
            folder.images = {k[:-size]: v for k, v in kept}
        folder.names = sorted(folder.images)
        folder.folders.sort(key=lambda name: name + b"/", reverse=True)
        return folder

    def _read(self, path: bytes, folder: _Folder) -> None:
        images, kinds = folder.images, self.kinds
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                stem, _, extension = name.rpartition(b".")
                kind = kinds.get(extension)
                if kind is None or not stem or name[0] == _DOT or not entry.is_file():
                    kind = self._kind_of_other(entry, folder)
                    if kind is None:
                        continue
                if stem in images:
                    clash = folder.prefix + stem.removesuffix(self.ending)
                    self.clashes += [(clash, b"." + extension)] * stem.endswith(self.ending)
                else:
                    images[stem] = kind

    def _kind_of_other(self, entry: os.DirEntry[bytes], folder: _Folder) -> int | None:
        """Count what is no image; the index of the extension if it is one."""
        stem, dot, extension = entry.name.rpartition(b".")
        suffix = os.fsdecode(dot + extension)
        if entry.name[0] == _DOT:
            self.ignored["hidden"] += 1
        elif entry.is_dir():
            folder.folders.append(entry.name)
        elif not (entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))):
            self.ignored["not regular files"] += 1
        elif stem and suffix.lower() in SUFFIXES:
            return self.kinds.setdefault(extension, len(self.kinds))
        elif os.fsdecode(entry.name) != SETTINGS_FILE:
            self.ignored[suffix if stem and dot else "without extension"] += 1
        return None


Positions = npt.NDArray[np.int64]


def merge(all_names: Sequence[Names]) -> tuple[Names, Positions]:
    """Union of sorted names.

    Returns:
        The union, sorted, and (lists, N) the index of each of its names in every list; -1 where a
        list lacks it.
    """
    if all(names is all_names[0] for names in all_names):
        every = np.arange(len(all_names[0]))
        return all_names[0], np.broadcast_to(every, (len(all_names), len(every)))
    from multimae.images.index.merging import merge_different

    return merge_different(all_names)


def paired(
    listings: Mapping[str, Listing],
    packed: Collection[str],
    names: Names,
    positions: Positions,
    complete: npt.NDArray[np.bool_],
    problems: list[tuple[str, str]],
) -> SampleIndex:
    """Index of the samples ``complete`` (N,) among ``names``.

    Args:
        listings: By modality.
        packed: Modalities that are packed.
        names: From :func:`merge`.
        positions: From :func:`merge`.
        complete: Names that are samples.
        problems: ``incomplete`` of the index.
    """
    kinds, in_pack = {}, {}
    stamps = [stamp for listing in listings.values() for stamp in listing.stamps]
    for (name, listing), index in zip(listings.items(), positions, strict=True):
        same = listing.names is names and complete.all()
        chosen = None if same else index[complete]
        kinds[name] = (
            listing.kinds
            if chosen is None
            else np.where(chosen < 0, ABSENT, listing.kinds[chosen]).astype(np.uint8)
        )
        if name in packed:
            order = listing.order
            in_pack[name] = (
                order if chosen is None else (chosen if order is None else order[chosen])
            )
    names = names.where(complete)
    return SampleIndex(
        names,
        {name: listing.extensions for name, listing in listings.items()},
        kinds,
        in_pack,
        {name: len(listing.names) for name, listing in listings.items()},
        {name: listing.ignored for name, listing in listings.items()},
        problems,
        names.digest(),
        stamps if all(listing.stamps for listing in listings.values()) else [],
    )
