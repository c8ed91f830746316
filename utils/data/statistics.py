"""Mean and deviation of a data set's images, and warnings where weights were trained on others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from multimae.images.folders import MultiModalFolder
from multimae.images.index.listing import FindIndex, list_now
from multimae.images.no_data_tags import with_no_data_tags
from multimae.images.pack import AnyPath
from multimae.images.pixels import ImageError
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from multimae.weights.files import CheckpointError
from multimae.weights.model_files import read_spec
from utils.data.dataset import MultiModalDataset
from utils.distributed.world import ALONE, World

MEASURED_IMAGES = 256
WARNING_IMAGES = 64
MAX_DEVIATION = 3.0

Numbers = tuple[float, ...]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Per channel, over all pixels with a value, on the scale of a modality's ``mean``."""

    mean: Numbers
    std: Numbers
    images: int


def measure(
    folder: MultiModalFolder, modalities: Sequence[Modality], images: int = MEASURED_IMAGES
) -> dict[str, Statistics]:
    """Measure image modalities on evenly spaced samples of a folder.

    Skips files that cannot be read: the check before training reports them.

    Raises:
        UserError: No file of a modality can be read, or a channel is constant.
    """
    return {m.name: _measure(folder, m, images) for m in modalities if not m.is_labels}


def resolve_statistics(
    modalities: Sequence[Modality],
    roots: Sequence[str | AnyPath],
    world: World = ALONE,
    find: FindIndex = list_now,
    weights: Sequence[float] = (),
) -> list[Modality]:
    """Turn ``normalization: computed`` into ``mean_std`` with the statistics of ``roots``.

    A modality with a ``source`` gets those of its source.

    Args:
        modalities: The modalities.
        roots: Data roots.
        world: Processes, of which the first measures.
        find: As of :class:`MultiModalFolder`.
        weights: Weights of the roots in a mix; empty for a single root.

    Raises:
        UserError: Folders or files that cannot be read.
    """
    modalities = with_no_data_tags(modalities, *roots)
    names = {m.data_name for m in modalities if m.normalization == "computed"}
    known: dict[str, Statistics] = {}
    for m in modalities:
        if m.name in names:
            folders = [MultiModalFolder(root, [m], find=find) for root in roots]
            folder = folders[0]
            if weights:
                from utils.data.mixing import MixedFolder

                folder = MixedFolder(folders, weights)
            known |= world.broadcast_from_main(partial(measure, folder, [m]))
    return [_resolved(m, known.get(m.data_name)) for m in modalities]


def _resolved(m: Modality, statistics: Statistics | None) -> Modality:
    if m.normalization != "computed" or statistics is None:
        return m
    return dataclasses.replace(
        m, normalization="mean_std", mean=statistics.mean, std=statistics.std
    )


def statistics_mismatches(
    measured: Mapping[str, Statistics], trained: Sequence[Modality], source: str
) -> list[str]:
    """Warnings about data far from that of a checkpoint.

    Args:
        measured: Statistics of the data.
        trained: Modalities of the checkpoint.
        source: Name of the checkpoint.

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
        if far > MAX_DEVIATION or not all(1 / MAX_DEVIATION <= s <= MAX_DEVIATION for s in spread):
            warnings.append(
                f"warning: modality '{m.name}': the data has mean {_few(found.mean)} and standard "
                f"deviation {_few(found.std)} ({found.images} images), {source} was trained with "
                f"{_few(mean)} and {_few(std)}: {far:.1f} standard deviations apart, spread x "
                f"{max(spread, key=lambda s: abs(math.log(s))):.2g}. Check max_value and the unit "
                "of the files."
            )
    return warnings


def statistics_warnings(weights: str, dataset: MultiModalDataset) -> list[str]:
    """:func:`statistics_mismatches` between a data set and a weight file.

    Files without a model spec (published ones, ViTs) have no statistics to compare.
    """
    try:
        trained = read_spec(weights).modalities
    except (CheckpointError, OSError):
        return []
    measurable = [m for m in dataset.folder.modalities if m.normalization == "mean_std"]
    try:
        return statistics_mismatches(
            measure(dataset.folder, measurable, WARNING_IMAGES), trained, weights
        )
    except UserError as err:  # nothing to compare, which need not stop a run
        return [f"warning: {err}"]


def _measure(folder: MultiModalFolder, m: Modality, images: int) -> Statistics:
    """Statistics of one modality; each part of a mix counts by its share."""
    total_share, mean, squares, read = 0.0, np.zeros(m.num_channels), np.zeros(m.num_channels), 0
    for part, times in zip(folder.parts, folder.times_per_epoch, strict=True):
        share = times * len(part) / len(folder)
        sums = _sums(part, m, part.spread(max(1, round(share * images))))
        if sums.pixels.all():
            mean += share * (sums.total / sums.pixels)
            squares += share * (sums.squares / sums.pixels)
            total_share, read = total_share + share, read + sums.images
    folders = " and ".join(str(part.root / m.data_folder) for part in folder.parts)
    if not read:
        raise UserError(
            f"modality '{m.name}': no file of {folders} has a value to compute statistics from. "
            "Check the files, or set mean and std."
        )
    mean, squares = mean / total_share, squares / total_share
    std = np.sqrt(np.maximum(squares - mean**2, 0.0))
    if (std < 1e-8).any():
        raise UserError(
            f"modality '{m.name}': a channel of {folders} is constant: standard deviation "
            f"{_few(std.tolist())}. Drop the channel, or set mean and std."
        )
    return Statistics(tuple(mean.tolist()), tuple(std.tolist()), read)


class _Sums(NamedTuple):
    """Sums over pixels by channel, and the number of images."""

    pixels: Floats
    total: Floats
    squares: Floats
    images: int


def _sums(folder: MultiModalFolder, m: Modality, indices: Sequence[int]) -> _Sums:
    count, total, squares = np.zeros((3, m.num_channels))
    images = 0
    for index in (i for i in indices if folder.has(i, m)):
        try:
            pixels = np.asarray(folder.read(index, m))
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
    return _Sums(count, total, squares, images)


def _few(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)
