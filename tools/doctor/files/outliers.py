"""Find files that are unlike the others of their modality."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from multimae.images.pixels import storage_dtype
from multimae.specs.modalities import Modality
from tools.doctor.files.file_records import FileRecord, is_scalar_map
from tools.doctor.findings import Finding, Severity

_EIGHT_BIT = frozenset({"1", "L", "P"})
# Distance of a file's median from the median of all, in powers of ten: a factor of ten is another
# unit, a factor of two another view. Rendered rooms stay within 0.3.
_MIN_DEVIATION, _DEVIATIONS, _MIN_GAP = 0.55, 5.0, 0.3
_MIN_STEP = 5
# Above this share of files with one or two values, such files are normal (masks).
_MANY = 0.3


def find_outliers(modality: Modality, records: Sequence[FileRecord]) -> Iterator[Finding]:
    """Find files of one modality that differ from the rest in size, mode, bit depth or unit."""
    read = [r for r in records if r.levels]
    if not read:
        return
    yield from _sizes_and_modes(modality, read)
    if modality.is_labels:
        return
    plain = sum(r.levels <= 2 for r in read)
    if plain > _MANY * len(read) and len(read) > 2:
        text = f"{plain} of {len(read)} files have at most two values, which only suits masks."
        yield Finding("info", "constant", text, modality=modality.name)
        return
    for r in read:
        if r.levels == 1:
            text = "has only one value. Replace it, or remove the sample."
            yield _finding(r, "error", "constant", text)
    if storage_dtype(modality) == np.uint16:
        yield from _bit_depth(modality, read)
    if is_scalar_map(modality):
        yield from _scale(modality, read)


def _sizes_and_modes(modality: Modality, records: Sequence[FileRecord]) -> Iterator[Finding]:
    sizes = Counter(f"{r.height} x {r.width}" for r in records)
    modes = Counter(r.mode for r in records)
    for what, found in (("sizes (H x W)", sizes), ("modes", modes)):
        if len(found) > 1:
            most = ", ".join(f"{name}: {n}" for name, n in found.most_common(5))
            text = f"{len(found)} different {what}: {most}{', ...' if len(found) > 5 else ''}"
            yield Finding("info", "mixed", text, modality=modality.name)


def _bit_depth(modality: Modality, records: Sequence[FileRecord]) -> Iterator[Finding]:
    """Find 8-bit files in a 16-bit modality: valid only if all are, and max_value is 255."""
    narrow = [r for r in records if r.mode in _EIGHT_BIT]
    if len(narrow) == len(records):
        text = (
            f"all {len(records)} files have 8 bits, but max_value is {modality.max_value:g}. Set "
            "max_value: 255 in the config's `modalities:` section, or store 16 bits."
        )
        yield Finding("warning", "bit-depth", text, modality=modality.name)
        return
    for r in narrow:
        text = (
            f"has 8 bits, but {len(records) - len(narrow)} of {len(records)} files have 16. "
            "Regenerate it from the original values."
        )
        yield _finding(r, "error", "bit-depth", text)


def _scale(modality: Modality, records: Sequence[FileRecord]) -> Iterator[Finding]:
    """Find files in a different unit than most."""
    for r in records:
        if math.isnan(r.scale) and r.levels > 1:
            yield _finding(
                r, "warning", "no-valid-values", "has no values except 0 and the maximum."
            )
    wide = [r for r in records if r.mode not in _EIGHT_BIT] or records
    known = [r for r in wide if not math.isnan(r.scale) and r.levels > 1]
    if len(known) < 3:
        return
    logs = np.array([r.scale for r in known])
    steps = np.array([r.step for r in known])
    common = _in_common_unit(logs)
    spread = 1.4826 * np.median(np.abs(logs[common] - np.median(logs[common])))
    middle = float(np.median(logs[common]))
    off = logs - middle
    far = np.abs(off) > max(_MIN_DEVIATION, _DEVIATIONS * spread)
    coarse = (steps >= _MIN_STEP) & (np.median(steps) == 1)
    for i in np.flatnonzero(far | coarse):
        why = f"its median is {10 ** off[i]:.3g} times that of most files"
        if coarse[i]:
            why += f", and all its values are multiples of {steps[i]}"
        text = f"seems to be in another unit: {why}. Convert it to the unit of the others."
        yield _finding(known[i], "error", "unit", text)


def _in_common_unit(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Mask of the files in the most common unit: the larger side of a wide gap, or all."""
    order = np.sort(logs)
    gaps = np.diff(order)
    cut = int(gaps.argmax())
    if gaps[cut] < _MIN_GAP:
        return np.ones(len(logs), bool)
    below = logs <= order[cut]
    return np.asarray(below if below.sum() * 2 >= len(logs) else ~below)


def _finding(record: FileRecord, severity: Severity, code: str, text: str) -> Finding:
    return Finding(severity, code, text, record.path, record.modality, record.key)
