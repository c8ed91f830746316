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

_DOT, _SLASH = b"./"


def list_pack(pack: PackedFolder, ending: str = "") -> Listing:
    """List the images of a pack; ``ending`` as for :func:`list_folder`."""
    stripped = os.fsencode(ending)
    kinds: dict[bytes, int] = {}
    texts, found = [np.zeros(0, np.uint8)], [np.zeros(0, np.uint8)]
    kept = [np.zeros(0, np.int64)]
    for first in range(0, len(pack.names), BLOCK):
        rows = np.ascontiguousarray(pack.names[first : first + BLOCK])
        stems, extensions = _split(rows)
        own, index = np.unique(extensions, return_inverse=True)
        known = [kinds.setdefault(bytes(extension), len(kinds)) for extension in own.tolist()]
        where = np.arange(len(rows))
        if stripped:
            where = np.flatnonzero(np.char.endswith(stems, stripped))
            stems = np.array([s.removesuffix(stripped) for s in stems[where].tolist()], np.bytes_)
        texts.append(join_names(stems) if len(where) else np.zeros(0, np.uint8))
        found.append(np.array(known, np.uint8)[index[where]])
        kept.append(where + first)
    names, order = _sorted_names(Names.from_text(np.concatenate(texts)))
    in_pack, column = np.concatenate(kept), np.concatenate(found)
    listing = Listing(names, [os.fsdecode(extension) for extension in kinds], column)
    listing.stamps = pack.stamps()
    if order is not None:
        listing.kinds, listing.order = column[order], in_pack[order]
        return _without_clashes(listing)
    if len(in_pack) < len(pack.names):
        listing.order = in_pack
    return listing


def _split(
    rows: npt.NDArray[np.bytes_],
) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.bytes_]]:
    """Names up to the last dot, and the rest."""
    width = rows.dtype.itemsize
    letters = rows.view(np.uint8).reshape(len(rows), width)
    sizes = np.char.str_len(rows)
    dot, slash = _last(letters, _DOT), _last(letters, _SLASH)
    dot = np.where(dot > slash + 1, dot, sizes)
    stems = np.where(np.arange(width) < dot[:, None], letters, 0)
    longest = max(1, int((sizes - dot).max(initial=0)))
    at = np.minimum(dot[:, None] + np.arange(longest), width - 1)
    inside = dot[:, None] + np.arange(longest) < sizes[:, None]
    extensions = np.where(inside, np.take_along_axis(letters, at, axis=1), 0)
    return (
        np.ascontiguousarray(stems).view(f"S{width}")[:, 0],
        np.ascontiguousarray(extensions.astype(np.uint8)).view(f"S{longest}")[:, 0],
    )


def _last(letters: npt.NDArray[np.uint8], letter: int) -> npt.NDArray[np.int64]:
    """(N,) last column that holds ``letter``; -1 if none does."""
    found = letters[:, ::-1] == letter
    first = found.argmax(axis=1)
    return np.where(found.any(axis=1), letters.shape[1] - 1 - first, -1)


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
