"""Find duplicate images: identical files, and near duplicates such as re-encoded ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tools.doctor.files.file_records import FileRecord
from tools.doctor.findings import Finding, Severity

_SIDE = 16
# Photos are near duplicates if their 64-bit hashes differ in few bits and their thumbnails by less
# than this share of their contrast (re-encoding changes about 0.01).
_MAX_BITS, _MAX_DIFFERENCE = 6, 0.06
_NEIGHBOURS = 6


def thumbnail(small: npt.NDArray[np.float32]) -> bytes:
    """16 x 16 grey bytes of an image ``[C, side, side]`` in 0..255, ``side`` a multiple of 16."""
    cell = small.shape[1] // _SIDE
    rows = small.reshape(len(small), _SIDE, cell, -1).sum(axis=(0, 2))
    sums = rows.reshape(_SIDE, _SIDE, cell).sum(axis=2)
    grey = np.clip((sums / (len(small) * cell * cell)).round(), 0, 255)
    return bytes(grey.astype(np.uint8))


def find_duplicates(train: Sequence[FileRecord], val: Sequence[FileRecord]) -> Iterator[Finding]:
    """Find images that occur twice, within a set or in both.

    Args:
        train: Records of image modalities (label maps may legitimately be equal).
        val: Those of the validation set.
    """
    split = {id(r): name for name, rs in (("train", train), ("val", val)) for r in rs}
    by_digest: dict[tuple[str, str], list[FileRecord]] = defaultdict(list)
    for record in (*train, *val):
        if record.digest and record.levels > 1:
            by_digest[record.modality, record.digest].append(record)
    for same in by_digest.values():
        first = same[0]
        for record in same[1:]:
            leak = split[id(first)] != split[id(record)]
            yield _finding(first, record, "is identical to", leak, "error" if leak else "warning")
    yield from _near(train, val)


def _near(train: Sequence[FileRecord], val: Sequence[FileRecord]) -> Iterator[Finding]:
    """Find pairs that look the same but differ in bytes; within one set only their number."""
    records = [r for r in (*train, *val) if r.thumb]
    is_val = np.arange(len(records)) >= sum(bool(r.thumb) for r in train)
    if len(records) < 2:
        return
    thumbs = np.frombuffer(b"".join(r.thumb for r in records), np.uint8).reshape(len(records), -1)
    within = 0
    for i, j in sorted(_close_pairs(thumbs)):
        a, b = records[i], records[j]
        if a.digest == b.digest or a.modality != b.modality:
            continue
        if is_val[i] != is_val[j]:
            yield _finding(a, b, "looks the same as", leak=True, severity="warning")
        else:
            within += 1
    if within:
        text = f"{within} pairs of images look the same within one set (frames of one scene?)"
        names = ", ".join(sorted({r.modality for r in records}))
        yield Finding("info", "near-duplicates", text, modality=names)


def _close_pairs(thumbs: npt.NDArray[np.uint8]) -> set[tuple[int, int]]:
    """Pairs of similar thumbnails ``[n, 256]``: neighbours when sorted by parts of their hash."""
    grey = thumbs.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4))
    bits = (np.roll(grey, -1, axis=2) > grey).reshape(len(grey), 64)
    flat = thumbs.astype(np.float32)
    contrast = flat.std(axis=1) + 1
    found: set[tuple[int, int]] = set()
    for start in range(0, 64, 16):
        packed = np.packbits(np.roll(bits, -start, axis=1), axis=1)
        order = np.lexsort(packed.T[::-1])
        for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            a, b = order[:-step], order[step:]
            few = (bits[a] != bits[b]).sum(axis=1) <= _MAX_BITS
            a, b = a[few], b[few]
            gap = np.abs(flat[a] - flat[b]).mean(axis=1) / np.minimum(contrast[a], contrast[b])
            close = gap < _MAX_DIFFERENCE
            pairs = np.sort(np.stack([a[close], b[close]], axis=1), axis=1)
            found.update((int(i), int(j)) for i, j in pairs)
    return found


def _finding(a: FileRecord, b: FileRecord, how: str, leak: bool, severity: Severity) -> Finding:
    advice = (
        "It leaks between the sets and inflates scores: remove it from one."
        if leak
        else "Remove one, or check that it is not another sample's file."
    )
    return Finding(
        severity,
        "leak" if leak else "duplicate",
        f"{how} {a.path}. {advice}",
        b.path,
        b.modality,
        b.key,
    )
