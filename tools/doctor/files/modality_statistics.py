"""Statistics of a modality: means, standard deviations, class weights, guessed unit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multimae.images.pixels import storage_dtype
from multimae.specs.modalities import VOID_NAMES, Modality
from multimae.specs.survey.guess_modality import depth_unit
from tools.doctor.files.file_checks import valid_counts
from tools.doctor.files.file_records import is_scalar_map
from tools.doctor.files.histograms import Counts, Sums, add, add_sums, moments, quantile
from utils.data.sets.class_weights import balanced_weights, median_frequency

_CLASSES_TOO = frozenset({"", "other", "none", "null"})
"""Names of an id 0 that is no class, which name classes at other ids."""


@dataclass
class Totals:
    """Histograms of one modality summed over files.

    Attributes:
        files: Number of files.
        counts: One histogram per channel.
        present: For labels: by class id, the pixels of all files that contain the class.
        sums: For floats, instead of histograms.
    """

    files: int = 0
    counts: list[Counts] = field(default_factory=list)
    present: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    sums: Sums | None = None

    def add_file(self, counts: Sequence[Counts], labels: bool, sums: Sums | None = None) -> None:
        """Add one file."""
        if sums is not None:
            self.files, self.sums = self.files + 1, add_sums(self.sums, sums)
            return
        self._add(1, counts)
        if labels:
            self.present = add(self.present, np.where(counts[0] > 0, counts[0].sum(), 0))

    def merge(self, other: Totals) -> None:
        """Add the files of other totals."""
        if other.sums is not None:
            self.files, self.sums = self.files + other.files, add_sums(self.sums, other.sums)
            return
        self._add(other.files, other.counts)
        self.present = add(self.present, other.present)

    def _add(self, files: int, counts: Sequence[Counts]) -> None:
        if not counts:
            return
        self.files += files
        old = self.counts or [np.zeros(0, np.int64)] * len(counts)
        self.counts = [add(a, b) for a, b in zip(old, counts, strict=True)]


def void_id(names: Sequence[str]) -> int | None:
    """Class id whose name means "no label"."""
    plain = [name.strip().lower() for name in names]
    void = (i for i, name in enumerate(plain) if name in VOID_NAMES)
    return next((i for i in void if i == 0 or plain[i] not in _CLASSES_TOO), None)


def compute_statistics(modality: Modality, totals: Totals) -> dict[str, Any]:
    """Compute the statistics of one modality as JSON values.

    Returns:
        ``files``; for labels ``classes`` (see :func:`_classes`) and ``void``; for images
        ``mean`` and ``std`` per channel on the [0, 1] scale, as in the modality spec,
        ``mean_stored`` and ``std_stored`` in stored values, ``min`` and ``max``; for scalar maps
        also ``valid`` (the same without 0 and the largest storable value) and ``unit``.
    """
    out: dict[str, Any] = {"kind": modality.kind, "files": totals.files}
    if totals.sums is not None:
        return out | _floats(modality, totals.sums)
    if not totals.counts:
        return out
    if modality.is_labels:
        return out | _classes(modality, totals)
    stored = [moments(c) for c in totals.counts]
    out |= {
        "mean": [m / modality.max_value for m, _ in stored],
        "std": [s / modality.max_value for _, s in stored],
        "mean_stored": [m for m, _ in stored],
        "std_stored": [s for _, s in stored],
        "min": [int(np.flatnonzero(c)[0]) for c in totals.counts],
        "max": [int(np.flatnonzero(c)[-1]) for c in totals.counts],
    }
    if is_scalar_map(modality):
        out |= _scalar(modality, totals.counts[0])
    return out


def _floats(modality: Modality, sums: Sums) -> dict[str, Any]:
    count = np.maximum(sums[0], 1)
    mean = sums[1] / count
    std = np.sqrt(np.maximum(sums[2] / count - mean**2, 0))
    known = np.where(sums[0] > 0, sums[3:], 0)
    return {
        "mean": (mean / modality.max_value).tolist(),
        "std": (std / modality.max_value).tolist(),
        "mean_stored": mean.tolist(),
        "std_stored": std.tolist(),
        "min": known[0].tolist(),
        "max": known[1].tolist(),
    }


def class_weights(totals: Totals, skip: int | None = None) -> dict[str, list[float]]:
    """Loss weights by class id; 0 for ``skip`` and for ids that do not occur.

    Returns:
        ``median_frequency``: median class frequency divided by that of the class, where frequency
        is the share of a class in the images that contain it (Eigen and Fergus, 2015).
        ``inverse_log``: ``1 / ln(1.02 + share)`` (Paszke et al., 2016).
    """
    counts = totals.counts[0].astype(np.float64)
    used = counts > 0
    if skip is not None and skip < len(used):
        used[skip] = False
    present = np.zeros(len(counts))
    present[: len(totals.present)] = totals.present[: len(counts)]
    share = counts[used] / max(counts[used].sum(), 1)
    median, inverse = median_frequency(counts * used, present), np.zeros(len(counts))
    if used.any():
        inverse[used] = 1 / np.log(1.02 + share)
    return {"median_frequency": median.tolist(), "inverse_log": inverse.tolist()}


def class_weights_file(modality: Modality, totals: Totals) -> dict[str, float]:
    """Content of a file for ``--class_weights``: balanced weights by class name or id.

    Void and ``no_data`` have none.
    """
    names, skip = modality.class_names, {void_id(modality.class_names), modality.no_data}
    ids = [i for i in range(modality.num_classes) if i not in skip]
    counts = add(totals.counts[0], np.zeros(modality.num_classes, np.int64))
    present = add(totals.present, np.zeros(modality.num_classes, np.int64))
    weights = balanced_weights(counts[ids], present[ids])
    return {
        names[i] if i < len(names) else str(i): round(weight, 6)
        for i, weight in zip(ids, weights, strict=True)
    }


def _classes(modality: Modality, totals: Totals) -> dict[str, Any]:
    counts = totals.counts[0]
    void = void_id(modality.class_names)
    pixels = int(counts.sum())
    size = max(modality.num_classes, len(np.trim_zeros(counts, "b")))
    padded = add(counts, np.zeros(size, np.int64))[:size]
    whole = Totals(totals.files, [padded], totals.present)
    return {
        "pixels": padded.tolist(),
        "names": list(modality.class_names),
        "void": void,
        "void_share": counts[void] / pixels if void is not None and void < len(counts) else None,
        "weights": class_weights(whole, void),
    }


def _scalar(modality: Modality, counts: Counts) -> dict[str, Any]:
    valid = valid_counts(counts, int(np.iinfo(storage_dtype(modality)).max))
    share = 1 - int(valid.sum()) / max(int(counts.sum()), 1)
    quantiles = {f"p{q:g}": quantile(valid, q / 100) for q in (1, 5, 50, 95, 99)}
    mean, std = moments(valid)
    facts = {"mean_stored": mean, "std_stored": std, **quantiles}
    known = {k: None if math.isnan(v) else v for k, v in facts.items()}
    return {"invalid_share": share, "valid": known, "unit": guess_unit(modality, quantiles)}


def guess_unit(modality: Modality, valid: Mapping[str, float]) -> str:
    """Guess the unit of a depth map from its median, as a sentence."""
    median, far = valid["p50"], valid["p95"]
    if math.isnan(median):
        return "no valid values"
    unit = depth_unit(median) if storage_dtype(modality).itemsize > 1 else None
    if unit is not None:
        metres, name = unit
        return (
            f"{name}, if it is depth: median {median * metres:.2f} m, 95 % below "
            f"{far * metres:.2f} m"
        )
    return f"relative or unknown: median {median:g}, 95 % below {far:g} of {modality.max_value:g}"
