"""What is counted over a data set, and the numbers that follow: means, class weights, units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multimae.images.pixels import storage_dtype
from multimae.specs.modalities import Modality
from tools.doctor.files.file_checks import valid_counts
from tools.doctor.files.histograms import Counts, add, moments, quantile
from tools.doctor.files.records import is_scalar_map

_VOID = frozenset({"void", "unlabeled", "unlabelled", "ignore", "ignored", "unknown", "invalid"})
# Metres per stored unit, and what it is called.
_UNITS = (
    (1e-3, "millimetres"),
    (1 / 512, "1/512 m"),
    (1 / 256, "1/256 m"),
    (1e-2, "centimetres"),
    (1e-4, "tenths of a millimetre"),
)
_PLAUSIBLE = (0.4, 60.0)


@dataclass
class Totals:
    """Counts of one modality over many files.

    Attributes:
        files: Number of files.
        counts: Pixels by stored value, one array per channel.
        present: Of labels: pixels of all files that hold the class, by class id.
    """

    files: int = 0
    counts: list[Counts] = field(default_factory=list)
    present: Counts = field(default_factory=lambda: np.zeros(0, np.int64))

    def take(self, counts: Sequence[Counts], labels: bool) -> None:
        """Add one file."""
        self._add(1, counts)
        if labels:
            self.present = add(self.present, np.where(counts[0] > 0, counts[0].sum(), 0))

    def merge(self, other: Totals) -> None:
        """Add the files of another."""
        self._add(other.files, other.counts)
        self.present = add(self.present, other.present)

    def _add(self, files: int, counts: Sequence[Counts]) -> None:
        if not counts:
            return
        self.files += files
        old = self.counts or [np.zeros(0, np.int64)] * len(counts)
        self.counts = [add(a, b) for a, b in zip(old, counts, strict=True)]


def void_id(names: Sequence[str]) -> int | None:
    """The class id that stands for "no label", by its name."""
    return next((i for i, name in enumerate(names) if name.lower() in _VOID), None)


def describe(row: Modality, totals: Totals) -> dict[str, Any]:
    """Statistics of one modality as plain values, for JSON.

    Returns:
        ``files``; for labels ``classes`` (see :func:`_classes`) and ``void``; for images
        ``mean`` and ``std`` per channel on the [0, 1] scale, as the row takes them,
        ``mean_stored`` and ``std_stored`` in stored values, ``min`` and ``max``; for scalar maps
        also ``valid`` (the same without 0 and the largest storable value) and ``unit``.
    """
    out: dict[str, Any] = {"kind": row.kind, "files": totals.files}
    if not totals.counts:
        return out
    if row.is_labels:
        return out | _classes(row, totals)
    stored = [moments(c) for c in totals.counts]
    out |= {
        "mean": [m / row.max_value for m, _ in stored],
        "std": [s / row.max_value for _, s in stored],
        "mean_stored": [m for m, _ in stored],
        "std_stored": [s for _, s in stored],
        "min": [int(np.flatnonzero(c)[0]) for c in totals.counts],
        "max": [int(np.flatnonzero(c)[-1]) for c in totals.counts],
    }
    if is_scalar_map(row):
        out |= _scalar(row, totals.counts[0])
    return out


def class_weights(totals: Totals, skip: int | None = None) -> dict[str, list[float]]:
    """Weights of the classes by id; 0 for ids that do not occur and for ``skip``.

    Returns:
        ``median_frequency``: the median class frequency over the class's own, a frequency being
        the share of a class in the images that hold it (Eigen and Fergus, 2015).
        ``inverse_log``: ``1 / ln(1.02 + share)`` (Paszke et al., 2016).
    """
    counts = totals.counts[0].astype(np.float64)
    used = counts > 0
    if skip is not None and skip < len(used):
        used[skip] = False
    present = np.zeros(len(counts))
    present[: len(totals.present)] = totals.present[: len(counts)]
    frequency = counts[used] / present[used]
    share = counts[used] / max(counts[used].sum(), 1)
    median, inverse = np.zeros(len(counts)), np.zeros(len(counts))
    if used.any():
        median[used] = np.median(frequency) / frequency
        inverse[used] = 1 / np.log(1.02 + share)
    return {"median_frequency": median.tolist(), "inverse_log": inverse.tolist()}


def _classes(row: Modality, totals: Totals) -> dict[str, Any]:
    counts = totals.counts[0]
    void = void_id(row.class_names)
    pixels = int(counts.sum())
    size = max(row.num_classes, len(np.trim_zeros(counts, "b")))
    padded = add(counts, np.zeros(size, np.int64))[:size]
    whole = Totals(totals.files, [padded], totals.present)
    return {
        "pixels": padded.tolist(),
        "names": list(row.class_names),
        "void": void,
        "void_share": counts[void] / pixels if void is not None and void < len(counts) else None,
        "weights": class_weights(whole, void),
    }


def _scalar(row: Modality, counts: Counts) -> dict[str, Any]:
    valid = valid_counts(counts, int(np.iinfo(storage_dtype(row)).max))
    share = 1 - int(valid.sum()) / max(int(counts.sum()), 1)
    quantiles = {f"p{q:g}": quantile(valid, q / 100) for q in (1, 5, 50, 95, 99)}
    mean, std = moments(valid)
    facts = {"mean_stored": mean, "std_stored": std, **quantiles}
    known = {k: None if math.isnan(v) else v for k, v in facts.items()}
    return {"invalid_share": share, "valid": known, "unit": guess_unit(row, quantiles)}


def guess_unit(row: Modality, valid: Mapping[str, float]) -> str:
    """What unit a depth map may be in, as a sentence; a guess by the median alone."""
    median, far = valid["p50"], valid["p95"]
    if math.isnan(median):
        return "no valid values"
    for metres, name in _UNITS:
        if storage_dtype(row).itemsize > 1 and _PLAUSIBLE[0] <= median * metres <= _PLAUSIBLE[1]:
            return (
                f"{name}, if it is depth: median {median * metres:.2f} m, 95 % below "
                f"{far * metres:.2f} m"
            )
    return f"relative or unknown: median {median:g}, 95 % below {far:g} of {row.max_value:g}"
