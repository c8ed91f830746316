"""Union of the names of modalities that do not all have the same files."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from multimae.images.index.listing import BLOCK, Names, Positions


def merge_different(all_names: Sequence[Names]) -> tuple[Names, Positions]:
    """As :func:`multimae.images.index.listing.merge`, block by block."""
    at = [0] * len(all_names)
    texts, positions = [], []
    while any(i < len(names) for i, names in zip(at, all_names, strict=True)):
        ahead = [(min(i + BLOCK, len(n)), n) for i, n in zip(at, all_names, strict=True)]
        limit = min(n[stop - 1] for i, (stop, n) in zip(at, ahead, strict=True) if i < len(n))
        stops = [bisect_right(n, limit, i, stop) for i, (stop, n) in zip(at, ahead, strict=True)]
        parts = [n.padded(i, j) for n, i, j in zip(all_names, at, stops, strict=True)]
        rows = np.concatenate(parts)
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        new = np.append(True, rows[1:] != rows[:-1])
        source = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
        index = np.concatenate([np.arange(i, j) for i, j in zip(at, stops, strict=True)])
        found = np.full((len(parts), int(new.sum())), -1, np.int64)
        found[source[order], np.cumsum(new) - 1] = index[order]
        texts.append(join_names(rows[new]))
        positions.append(found)
        at = stops
    return Names.from_text(np.concatenate(texts)), np.concatenate(positions, axis=1)


def join_names(rows: npt.NDArray[np.bytes_]) -> npt.NDArray[np.uint8]:
    """Text of padded names."""
    width = rows.dtype.itemsize
    columns = np.zeros((len(rows), width + 1), np.uint8)
    columns[:, :width] = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), width)
    return columns[np.arange(width + 1) <= np.char.str_len(rows)[:, None]]
