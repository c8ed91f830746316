"""Indices of large data sets on disk: listed once, then memory-mapped by every process.

``CACHE/{key}/{id}/``: flat arrays (``.npy``), and ``index.json``, written last. An entry is valid
while no folder that was listed has changed (mtime, ctime, inode), so that a later start costs one
stat per folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from multimae.images.index.listing import Names, SampleIndex, stamp_of

INDEX_FILE = "index.json"
SETTLED_NS = 2 * 10**9
"""Folders changed this shortly before they were listed may change again with the same mtime."""


def find(cache: Path, key: str) -> Path | None:
    """Entry of a data set whose folders have not changed; ``None`` if there is none."""
    for path in sorted((cache / key).glob(f"*/{INDEX_FILE}")):
        try:
            if _is_valid(path.parent):
                return path.parent
        except (OSError, ValueError, LookupError, TypeError):
            continue  # damaged, or of another version: listed again
    return None


def _is_valid(entry: Path) -> bool:
    stamps = np.load(entry / "stamps.npy", allow_pickle=False)
    paths = _load_names(entry, "stamped")
    if len(stamps) != len(paths) or not (stamps[:, 0] > 0).all():
        return False
    if stamps[:, 0].max() + SETTLED_NS > json.loads((entry / INDEX_FILE).read_text())["listed_ns"]:
        return False
    return all(
        tuple(row) == stamp_of(path)[1:] for path, row in zip(paths, stamps.tolist(), strict=True)
    )


def load(entry: Path) -> SampleIndex:
    """Memory-map an entry.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    about = json.loads((entry / INDEX_FILE).read_text(encoding="utf-8"))
    kinds = {name: _load(entry, f"kinds-{i}") for i, name in enumerate(about["extensions"])}
    in_pack: dict[str, npt.NDArray[np.int64] | None] = {
        name: _load(entry, f"in_pack-{i}") if stored else None
        for i, (name, stored) in enumerate(about["in_pack"].items())
    }
    return SampleIndex(
        _load_names(entry, "names"),
        about["extensions"],
        kinds,
        in_pack,
        about["found"],
        {name: Counter(reasons) for name, reasons in about["ignored"].items()},
        [(path, problem) for path, problem in about["incomplete"]],
        about["digest"],
        [],
        entry,
    )


def store(cache: Path, key: str, index: SampleIndex, listed_ns: int) -> Path:
    """Write an entry, in place of older ones of the same key.

    Args:
        cache: Folder of all entries; it is made.
        key: Of the data set.
        index: What to write.
        listed_ns: When listing began.

    Raises:
        OSError: The folder is not writable, or full.
    """
    entry = cache / key / uuid4().hex
    entry.mkdir(parents=True)
    try:
        _save_names(entry, "names", index.names)
        for i, column in enumerate(index.kinds.values()):
            np.save(entry / f"kinds-{i}.npy", column, allow_pickle=False)
        for i, order in enumerate(index.in_pack.values()):
            if order is not None:
                np.save(entry / f"in_pack-{i}.npy", order, allow_pickle=False)
        paths = b"".join(os.path.abspath(stamp[0]) + b"\0" for stamp in index.stamps)
        _save_names(entry, "stamped", Names.from_text(paths))
        stamps = np.array([stamp[1:] for stamp in index.stamps], np.int64)
        np.save(entry / "stamps.npy", stamps, allow_pickle=False)
        about = {
            "listed_ns": listed_ns,
            "extensions": index.extensions,
            "in_pack": {name: order is not None for name, order in index.in_pack.items()},
            "found": index.found,
            "ignored": index.ignored,
            "incomplete": index.incomplete,
            "digest": index.digest,
        }
        partial = entry / f".{INDEX_FILE}"
        partial.write_text(json.dumps(about), encoding="utf-8")
        partial.rename(entry / INDEX_FILE)
    except OSError:
        shutil.rmtree(entry, ignore_errors=True)
        raise
    for other in (cache / key).glob(f"*/{INDEX_FILE}"):
        if other.parent != entry:  # processes that have mapped its files keep them
            shutil.rmtree(other.parent, ignore_errors=True)
    return entry


def _save_names(entry: Path, name: str, names: Names) -> None:
    np.save(entry / f"{name}.npy", names.text, allow_pickle=False)
    np.save(entry / f"{name}-starts.npy", names.starts, allow_pickle=False)


def _load_names(entry: Path, name: str) -> Names:
    return Names(_load(entry, name), _load(entry, f"{name}-starts"))


def _load(entry: Path, name: str) -> npt.NDArray[Any]:
    # Plain arrays: np.memmap is slow to index.
    return np.asarray(np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False))
