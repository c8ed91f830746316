"""What one file shows only beside all the others of its modality."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from multimae.images.pixels import storage_dtype
from multimae.specs.modalities import Modality
from tools.doctor.files.records import FileRecord, is_scalar_map
from tools.doctor.findings import Finding, Severity

_EIGHT_BIT = frozenset({"1", "L", "P"})
# Medians of files, in powers of ten from the median of all: ten times another is a unit, twice is
# a view. Rendered rooms stay within 0.3.
_MIN_DEVIATION, _DEVIATIONS, _MIN_GAP = 0.55, 5.0, 0.3
_MIN_STEP = 5
# Above this share of files with one or two values they are how the modality is.
_MANY = 0.3


def compare(row: Modality, records: Sequence[FileRecord]) -> Iterator[Finding]:
    """Findings about files of one modality that are unlike the rest."""
    read = [r for r in records if r.levels]
    if not read:
        return
    yield from _sizes_and_modes(row, read)
    if row.is_labels:
        return
    plain = sum(r.levels <= 2 for r in read)
    if plain > _MANY * len(read) and len(read) > 2:
        text = f"{plain} of {len(read)} files hold one or two values only; right for masks alone."
        yield Finding("info", "constant", text, modality=row.name)
        return
    for r in read:
        if r.levels == 1:
            text = "holds one value only. Replace it, or remove the sample."
            yield _of(r, "error", "constant", text)
    if storage_dtype(row).itemsize > 1:
        yield from _bit_depth(row, read)
    if is_scalar_map(row):
        yield from _scale(row, read)


def _sizes_and_modes(row: Modality, records: Sequence[FileRecord]) -> Iterator[Finding]:
    sizes = Counter(f"{r.height} x {r.width}" for r in records)
    modes = Counter(r.mode for r in records)
    for what, found in (("sizes (H x W)", sizes), ("modes", modes)):
        if len(found) > 1:
            most = ", ".join(f"{name}: {n}" for name, n in found.most_common(5))
            text = f"{len(found)} different {what}: {most}{', ...' if len(found) > 5 else ''}"
            yield Finding("info", "mixed", text, modality=row.name)


def _bit_depth(row: Modality, records: Sequence[FileRecord]) -> Iterator[Finding]:
    """8-bit files where the row has 16: right only if all are, and the row says so."""
    narrow = [r for r in records if r.mode in _EIGHT_BIT]
    if len(narrow) == len(records):
        text = (
            f"all {len(records)} files have 8 bits, the row has max_value: {row.max_value:g}. Set "
            "max_value: 255 in the config's `modalities:` section, or store 16 bits."
        )
        yield Finding("warning", "bit-depth", text, modality=row.name)
        return
    for r in narrow:
        text = (
            f"has 8 bits, but {len(records) - len(narrow)} of {len(records)} files have 16. Make "
            "it again from the original values."
        )
        yield _of(r, "error", "bit-depth", text)


def _scale(row: Modality, records: Sequence[FileRecord]) -> Iterator[Finding]:
    """Files in another unit than most."""
    for r in records:
        if math.isnan(r.scale) and r.levels > 1:
            yield _of(r, "warning", "no-valid-values", "has 0 and the largest value only.")
    wide = [r for r in records if r.mode not in _EIGHT_BIT] or records
    known = [r for r in wide if not math.isnan(r.scale) and r.levels > 1]
    if len(known) < 3:
        return
    logs = np.array([r.scale for r in known])
    steps = np.array([r.step for r in known])
    usual = _usual(logs)
    spread = 1.4826 * np.median(np.abs(logs[usual] - np.median(logs[usual])))
    middle = float(np.median(logs[usual]))
    off = logs - middle
    far = np.abs(off) > max(_MIN_DEVIATION, _DEVIATIONS * spread)
    coarse = (steps >= _MIN_STEP) & (np.median(steps) == 1)
    for i in np.flatnonzero(far | coarse):
        why = f"its median is {10 ** off[i]:.3g} times that of most files"
        if coarse[i]:
            why += f", and all its values are multiples of {steps[i]}"
        text = f"seems to be in another unit: {why}. Make it again in the unit of the others."
        yield _of(known[i], "error", "unit", text)


def _usual(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which files are in the unit that most have: the larger side of a wide gap, or all."""
    order = np.sort(logs)
    gaps = np.diff(order)
    cut = int(gaps.argmax())
    if gaps[cut] < _MIN_GAP:
        return np.ones(len(logs), bool)
    below = logs <= order[cut]
    return np.asarray(below if below.sum() * 2 >= len(logs) else ~below)


def _of(record: FileRecord, severity: Severity, code: str, text: str) -> Finding:
    return Finding(severity, code, text, record.path, record.modality, record.key)
