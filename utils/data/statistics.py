"""Mean and standard deviation of a data set's modalities, and whether they fit a checkpoint's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multimae.images.pixels import ImageError
from multimae.images.readers import read
from multimae.specs.modalities import Modality
from multimae.weights.files import CheckpointError
from multimae.weights.pretrained import read_spec
from utils.data.dataset import MultiModalDataset
from utils.data.folders import MultiModalFolder
from utils.logs.errors import UserError

MEASURED_IMAGES = 256
WARNING_IMAGES = 64
MOST_DEVIATIONS = 3.0

Numbers = tuple[float, ...]
_Sums = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Of all pixels with a value, per channel, on the scale of ``mean`` and ``std`` of a row."""

    mean: Numbers
    std: Numbers
    images: int


def measure(
    folder: MultiModalFolder, rows: Sequence[Modality], images: int = MEASURED_IMAGES
) -> dict[str, Statistics]:
    """Statistics of image rows on evenly spread samples of a folder.

    Files that cannot be read are passed over: the check before training speaks of them.

    Raises:
        UserError: No file of a row can be read, or it is constant.
    """
    places = _spread(len(folder), images)
    return {m.name: _of_row(folder, m, places) for m in rows if not m.is_labels}


def resolve_statistics(rows: Sequence[Modality], root: str | Path) -> list[Modality]:
    """Rows with ``normalization: computed`` as ``mean_std`` rows with the statistics of ``root``.

    A row with a ``source`` takes those of its source.

    Raises:
        UserError: Folders or files that cannot be read.
    """
    wanted = {m.data_name for m in rows if m.normalization == "computed"}
    known: dict[str, Statistics] = {}
    for m in rows:
        if m.name in wanted:
            known |= measure(MultiModalFolder(root, [m]), [m])
    return [_filled(m, known.get(m.data_name)) for m in rows]


def _filled(m: Modality, statistics: Statistics | None) -> Modality:
    if m.normalization != "computed" or statistics is None:
        return m
    return dataclasses.replace(
        m, normalization="mean_std", mean=statistics.mean, std=statistics.std
    )


def statistics_mismatches(
    measured: Mapping[str, Statistics], trained: Sequence[Modality], source: str
) -> list[str]:
    """Warnings about data that is nowhere near what a checkpoint was trained on.

    Args:
        measured: Of the data.
        trained: Rows of the checkpoint.
        source: Its name.

    Returns:
        One message per modality whose data, normalised as the checkpoint did, has a mean more than
        3 standard deviations from 0, or 3 times as large or small a spread.
    """
    warnings = []
    for m in trained:
        found = measured.get(m.name)
        if found is None or m.is_labels or m.normalization != "mean_std":
            continue
        if len(found.mean) != m.num_channels:
            continue
        mean, std = (v * m.num_channels if len(v) == 1 else v for v in (m.mean, m.std))
        off = [(a - b) / s for a, b, s in zip(found.mean, mean, std, strict=True)]
        spread = [a / s for a, s in zip(found.std, std, strict=True)]
        far = max(map(abs, off))
        if far > MOST_DEVIATIONS or not all(
            1 / MOST_DEVIATIONS <= s <= MOST_DEVIATIONS for s in spread
        ):
            warnings.append(
                f"warning: modality '{m.name}': the data has mean {_few(found.mean)} and standard "
                f"deviation {_few(found.std)} ({found.images} images), {source} was trained with "
                f"{_few(mean)} and {_few(std)}: {far:.1f} standard deviations apart, spread x "
                f"{max(spread, key=lambda s: abs(math.log(s))):.2g}. Check max_value and the unit "
                "of the files."
            )
    return warnings


def statistics_warnings(weights: str, dataset: MultiModalDataset) -> list[str]:
    """What :func:`statistics_mismatches` says about a data set and a weight file.

    Files that do not describe their model (published ones, ViTs) know no statistics.
    """
    try:
        trained = read_spec(weights).rows
    except (CheckpointError, OSError):
        return []
    rows = [m for m in dataset.folder.modalities if m.normalization == "mean_std"]
    try:
        return statistics_mismatches(
            measure(dataset.folder, rows, WARNING_IMAGES), trained, weights
        )
    except UserError as err:  # nothing to compare; a run need not end for that
        return [f"warning: {err}"]


def _of_row(folder: MultiModalFolder, m: Modality, places: Sequence[int]) -> Statistics:
    count = np.zeros(m.num_channels)
    total, squares = count.copy(), count.copy()
    images = 0
    for place in places:
        try:
            pixels = np.asarray(read(folder.path(place, m), m))
        except ImageError:
            continue
        values = pixels.reshape(-1, m.num_channels).astype(np.float64)
        if m.no_data is not None:
            empty = np.isnan(values) if math.isnan(m.no_data) else values == m.no_data
            values = values[~empty.any(axis=1)]
        values /= m.max_value
        count += len(values)
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
        images += 1
    return _statistics(m, folder, images, count, total, squares)


def _statistics(
    m: Modality, folder: MultiModalFolder, images: int, count: _Sums, total: _Sums, squares: _Sums
) -> Statistics:
    if not images or not count.all():
        raise UserError(
            f"modality '{m.name}': no file of {folder.root / m.data_folder} has a value to compute "
            "statistics from. Check the files, or give mean and std."
        )
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    if (std < 1e-8).any():
        raise UserError(
            f"modality '{m.name}': a channel of {folder.root / m.data_folder} is constant: "
            f"standard deviation {_few(std.tolist())}. Drop the channel, or give mean and std."
        )
    return Statistics(tuple(mean.tolist()), tuple(std.tolist()), images)


def _spread(total: int, count: int) -> list[int]:
    count = min(count, total)
    return [i * total // count for i in range(count)]


def _few(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)
