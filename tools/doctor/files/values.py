"""What the values of one file say: class ids, darkness, the scale of a scalar map."""

from __future__ import annotations

import numpy as np

from multimae.images.pixels import Array, storage_dtype
from tools.doctor.files.histograms import Counts, quantile
from tools.doctor.files.records import Examined, is_scalar_map

# A photograph whose mean and 99th percentile are below these shares of the range shows nothing.
_DARK_MEAN, _DARK_TOP = 0.03, 0.12
# Interpolated labels: ids between those of both neighbours, as a share of all changes of id.
# Rendered labels have up to 0.03 of them, resized ones from 0.36 on (docs/LOG.md).
_BLENDED, _BLENDED_ODDS, _MIN_CHANGES = 0.15, 2.0, 30
_MANY_ROWS = 200
_MAX_SHOWN = 5


def check_values(out: Examined, num_ids: int) -> None:
    """Note what is wrong with the values of a file; fill the fields of its record."""
    out.record.levels = max(int(np.count_nonzero(c)) for c in out.counts)
    if out.row.is_labels:
        _check_ids(out, num_ids)
    elif is_scalar_map(out.row):
        _measure_scale(out)
    elif out.row.is_photo:
        _check_dark(out)


def _check_ids(out: Examined, num_ids: int) -> None:
    counts = out.counts[0]
    outside = num_ids + np.flatnonzero(counts[num_ids:])
    if len(outside):
        ids = ", ".join(map(str, outside[:_MAX_SHOWN]))
        more = ", ..." if len(outside) > _MAX_SHOWN else ""
        share = counts[num_ids:].sum() / counts.sum()
        text = (
            f"has class ids {ids}{more} outside 0..{num_ids - 1} in {share:.2%} of its pixels. "
            "Remap them, or set num_classes (and classes.json)."
        )
        out.note("error", "label-range", text)
    if isinstance(out.pixels, np.ndarray):
        share = blended_share(out.pixels)
        if share > _BLENDED:
            text = (
                f"{share:.0%} of its changes of class pass through an id between the two: the "
                "labels were resized with interpolation. Resize the originals with nearest."
            )
            out.note("error", "label-blended", text)


def blended_share(ids: Array) -> float:
    """Share of the changes of class that pass through an id between the two.

    Args:
        ids: ``(H, W)``.

    Returns:
        0 to 1; 0 if there are few changes, or if ids outside the two are about as frequent (noise).
    """
    changes = between = outside = 0
    every = 1 + (ids.shape[0] > _MANY_ROWS)  # every other row tells as much
    across = ids[::every]
    down = np.ascontiguousarray(ids[:, ::every])
    for before, middle, after in (
        (across[:, :-2], across[:, 1:-1], across[:, 2:]),
        (down[:-2], down[1:-1], down[2:]),
    ):
        at = before != after
        a, m, b = before[at], middle[at], after[at]
        low, high = np.minimum(a, b), np.maximum(a, b)
        changes += int((high - low >= 2).sum())
        between += int(((m > low) & (m < high)).sum())
        outside += int(((high - low >= 2) & ((m < low) | (m > high))).sum())
    if changes < _MIN_CHANGES or between < _BLENDED_ODDS * outside:
        return 0.0
    return between / changes


def valid_counts(counts: Counts, top: int) -> Counts:
    """Counts without 0 and the largest storable value, which mark invalid pixels."""
    valid: Counts = counts.copy()
    valid[0] = 0
    valid[top:] = 0
    return valid


def _measure_scale(out: Examined) -> None:
    valid = valid_counts(out.counts[0], int(np.iinfo(storage_dtype(out.row)).max))
    median = quantile(valid, 0.5)
    if median > 0:
        out.record.scale = float(np.log10(median))
        out.record.step = int(np.gcd.reduce(np.flatnonzero(valid)))


def _check_dark(out: Examined) -> None:
    top = out.row.max_value
    mean = float(np.mean([c @ np.arange(len(c)) / c.sum() for c in out.counts]))
    if mean >= _DARK_MEAN * top or out.record.levels == 1:
        return
    if max(quantile(c, 0.99) for c in out.counts) < _DARK_TOP * top:
        text = f"is nearly black (mean {mean:.1f} of {top:.0f}). Remove the sample, or replace it."
        out.note("warning", "near-black", text)
