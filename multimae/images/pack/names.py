"""Names of a pack as flat arrays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from multimae.images.index.listing import BLOCK, Listing, Names
from multimae.images.index.merging import join_names

if TYPE_CHECKING:
    from multimae.images.pack.reading import PackedFolder

_SLASH = b"/"[0]


def list_pack(pack: PackedFolder, ending: str = "") -> Listing:
    """List the images of a pack; ``ending`` as for :func:`list_folder`."""
    stripped = os.fsencode(ending)
    kinds: dict[bytes, int] = {}
    text, found, kept = bytearray(), bytearray(), [np.zeros(0, np.int64)]
    for first in range(0, len(pack.names), BLOCK):
        block = _Block(pack.names.read(first, first + BLOCK))
        column = block.strip_extensions(kinds)
        where = block.strip(stripped)
        text += block.text()
        found += column[where].tobytes()
        if stripped:
            kept.append(where + first)
    names, order = _sorted_names(Names.from_text(text))
    column = np.frombuffer(found, np.uint8)
    listing = Listing(names, [os.fsdecode(extension) for extension in kinds], column)
    listing.stamps = pack.stamps()
    in_pack = np.concatenate(kept) if stripped else None
    if order is not None:
        listing.kinds = column[order]
        listing.order = order if in_pack is None else in_pack[order]
        return _without_clashes(listing)
    if len(names) < len(pack.names):
        listing.order = in_pack
    return listing


class _Block:
    """Some of the names, from which endings are stripped."""

    def __init__(self, names: npt.NDArray[np.bytes_]) -> None:
        self.names, self.sizes = names, np.char.str_len(names)
        width = names.dtype.itemsize
        self.letters = np.zeros((len(names), width + 1), np.uint8)  # NUL after every name
        self.letters[:, :width] = names.view(np.uint8).reshape(-1, width)

    def strip_extensions(self, known: dict[bytes, int]) -> npt.NDArray[np.uint8]:
        """Strip them; the index of each in ``known``, to which new ones are added."""
        known.setdefault(_extension(self.names[0]), len(known))
        kinds, rest = np.zeros(len(self.names), np.uint8), np.arange(len(self.names))
        for extension, kind in known.items():
            has = self._ends_with(rest, extension) if extension else np.zeros(len(rest), bool)
            kinds[rest[has]] = kind
            self.sizes[rest[has]] -= len(extension)
            rest = rest[~has]
        for i in rest.tolist():
            extension = _extension(self.names[i])
            kinds[i] = known.setdefault(extension, len(known))
            self.sizes[i] -= len(extension)
        return kinds

    def strip(self, ending: bytes) -> npt.NDArray[np.intp]:
        """Keep the names with an ending, and strip it; their indices."""
        where = np.arange(len(self.sizes))
        if ending:
            where = where[self._ends_with(where, ending, least=0)]
            self.letters, self.sizes = self.letters[where], self.sizes[where] - len(ending)
        return where

    def text(self) -> bytes:
        """The names, each followed by NUL."""
        columns = np.arange(self.letters.shape[1])
        self.letters[np.arange(len(self.letters)), self.sizes] = 0
        return self.letters[columns <= self.sizes[:, None]].tobytes()

    def _ends_with(
        self, rows: npt.NDArray[np.intp], ending: bytes, least: int = 1
    ) -> npt.NDArray[np.bool_]:
        """Which names of ``rows`` end with ``ending``, after ``least`` letters of a file name."""
        starts = self.sizes[rows] - len(ending)
        found: npt.NDArray[np.bool_] = starts >= least
        if not found.any():
            return found
        starts = np.maximum(starts, 0)
        for i, letter in enumerate(ending):
            found &= self.letters[rows, starts + i] == letter
        if least:
            found &= self.letters[rows, starts - 1] != _SLASH
        return found


def _extension(name: bytes) -> bytes:
    """From the last dot of the file name; nothing if it begins with that."""
    stem, dot, extension = name.rpartition(b"/")[2].rpartition(b".")
    return dot + extension if stem else b""


def _sorted_names(names: Names) -> tuple[Names, npt.NDArray[np.int64] | None]:
    """The names in order, and their former indices; ``None`` if they were in order and unique."""
    last = b""
    for first, stop in names.blocks():
        rows = names.padded(first, stop)
        if not (rows[1:] > rows[:-1]).all() or (first and not bytes(rows[0]) > last):
            break
        last = bytes(rows[-1])
    else:
        return names, None
    rows = names.padded(0, len(names))
    order = np.argsort(rows, kind="stable")
    return Names.from_text(join_names(rows[order])), order


def _without_clashes(listing: Listing) -> Listing:
    """Move further files of the same name to ``clashes``."""
    rows = listing.names.padded(0, len(listing.names))
    again = np.append(False, rows[1:] == rows[:-1])
    listing.clashes = [
        (bytes(rows[i]), os.fsencode(listing.extensions[listing.kinds[i]]))
        for i in np.flatnonzero(again).tolist()
    ]
    assert listing.order is not None
    names, kinds, order = listing.names.where(~again), listing.kinds[~again], listing.order[~again]
    listing.names, listing.kinds, listing.order = names, kinds, order
    return listing
