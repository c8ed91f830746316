"""Histograms of stored values, from which all statistics are computed exactly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from multimae.images.pixels import Array, Pixels

Counts = npt.NDArray[np.int64]
"""``[values]``: number of pixels by stored value, from 0."""


def counts_of(pixels: Pixels) -> list[Counts]:
    """Histogram of each channel of an image."""
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 2:
        pixels = Image.fromarray(pixels)  # its histogram is faster
    if isinstance(pixels, Image.Image):
        table = np.array(pixels.histogram(), dtype=np.int64)
        return list(table.reshape(-1, 256))
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    return [np.bincount(channels[..., c].ravel()) for c in range(channels.shape[2])]


def add(total: Counts, counts: Counts) -> Counts:
    """Add two histograms of any lengths."""
    long, short = (total, counts) if len(total) >= len(counts) else (counts, total)
    out: Counts = long.copy()
    out[: len(short)] += short
    return out


def quantile(counts: Counts, q: float) -> float:
    """Quantile ``q`` of the stored values; NaN if empty."""
    sums = np.cumsum(counts)
    if not len(sums) or sums[-1] == 0:
        return float("nan")
    return float(np.searchsorted(sums, q * sums[-1]))


def moments(counts: Counts) -> tuple[float, float]:
    """Mean and population standard deviation of the stored values; NaN if empty.

    The sums are exact integers: the order of the files does not matter.
    """
    pairs = [(int(v), int(counts[v])) for v in np.flatnonzero(counts)]
    n = sum(c for _, c in pairs)
    if n == 0:
        return float("nan"), float("nan")
    first = sum(v * c for v, c in pairs)
    second = sum(v * v * c for v, c in pairs)
    return first / n, ((second * n - first * first) / (n * n)) ** 0.5


Sums = npt.NDArray[np.float64]
"""``[5, channels]`` of floats: count, sum, sum of squares, minimum, maximum."""


def sums_of(pixels: Array, no_data: float | None) -> Sums:
    """Sums of each channel over finite values other than ``no_data``."""
    values = pixels.reshape(-1, 1 if pixels.ndim == 2 else pixels.shape[2]).astype(np.float64)
    valid = np.isfinite(values)
    if no_data is not None:
        valid &= values != np.float32(no_data)
    zeros = np.where(valid, values, 0)
    return np.stack(
        [
            valid.sum(axis=0),
            zeros.sum(axis=0),
            np.square(zeros).sum(axis=0),
            np.where(valid, values, np.inf).min(axis=0),
            np.where(valid, values, -np.inf).max(axis=0),
        ]
    )


def add_sums(total: Sums | None, sums: Sums | None) -> Sums | None:
    """Sums over both."""
    if total is None or sums is None:
        return sums if total is None else total
    low, high = np.minimum(total[3], sums[3]), np.maximum(total[4], sums[4])
    out: Sums = np.concatenate([total[:3] + sums[:3], low[None], high[None]])
    return out
