"""NYU Depth v2: MATLAB files to folders (Silberman et al. 2012; 40 classes: Gupta 2013).

Axes of the labelled file as HDF5 sees them: images (N, 3, W, H), depths, rawDepths and labels
(N, W, H).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae.specs.errors import UserError
from tools.common.jobs import PRESENT, WRITTEN, Tally, run_jobs, summary
from tools.common.target_folder import ONE_FOLDER, Target, millimetres, valid_mask
from tools.prepare.matlab import open_hdf5, read_mat
from tools.rooms.classes import NYU40_CLASSES

SPLIT_KEYS = {"train": "trainNdxs", "test": "testNdxs"}
MAPPING_KEY = "mapClass"
CLASSES = len(NYU40_CLASSES) - 1
INSIDE = (slice(45, 471), slice(41, 601))
"""Rows and columns without the white border, as in Eigen et al. (2014)."""

_TYPES = {
    "images": ("uint8",),
    "depths": ("float32", "float64"),
    "rawDepths": ("float32", "float64"),
    "labels": ("uint8", "uint16"),
}


@dataclass(frozen=True)
class Nyuv2:
    """What to prepare.

    Attributes:
        labelled: ``nyu_depth_v2_labeled.mat``.
        splits: ``splits.mat``.
        mapping: ``classMapping40.mat``; ``None``: write no label maps.
        crop: Crop the white border.
    """

    labelled: Path
    splits: Path
    mapping: Path | None = None
    crop: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the arrays to read."""
        return tuple(_TYPES)[: None if self.mapping else -1]


def prepare_nyuv2(job: Nyuv2, target: Target, workers: int = 1) -> str:
    """Write ``{train,test}/{rgb,depth,semseg,mask_valid}``.

    Returns:
        The summary.

    Raises:
        UserError: Files are invalid.
        OSError: A file cannot be written.
    """
    count = _check_labelled(job)
    ids = None if job.mapping is None else _read_mapping(job.mapping)
    samples = _read_splits(job.splits, count)
    target.claim({"dataset": "nyuv2", "crop_border": job.crop})
    if ids is not None:
        target.write_class_names(NYU40_CLASSES, SPLIT_KEYS)
    tally = run_jobs(_Convert(job, target, ids), samples, workers, "img")
    text = summary("nyuv2", tally, target.root)
    left = count - len(samples)
    text += f"; {left} images are in no split" if left else ""
    return text if ids is not None else f"{text}; no label maps (no class mapping was given)"


@dataclass(frozen=True)
class _Convert:
    """Convert one image, given split and index from 0."""

    job: Nyuv2
    target: Target
    ids: npt.NDArray[np.uint8] | None

    def __call__(self, sample: tuple[str, int]) -> Tally:
        split, index = sample
        key = f"{ONE_FOLDER}/{index + 1:04d}"
        names = ("rgb", "depth", "mask_valid", *(("semseg",) if self.ids is not None else ()))
        paths = {name: self.target.path(split, name, key) for name in names}
        if self.target.is_done(paths.values()):
            return Counter({(split, PRESENT): 1})
        for name, image in self._images(index).items():
            self.target.write_png(paths[name], image)
        return Counter({(split, WRITTEN): 1})

    def _images(self, index: int) -> dict[str, npt.NDArray[Any]]:
        job = self.job
        with open_hdf5(job.labelled, job.keys) as file:
            # Reversing the axes restores MATLAB's H x W (x 3).
            stored = {key: np.asarray(file[key][index]).T for key in job.keys}
        where = f"{job.labelled}: image {index + 1}"
        if job.crop:
            stored = {key: array[INSIDE] for key, array in stored.items()}
        depth = millimetres(stored["depths"])
        raw = stored["rawDepths"]
        valid = np.isfinite(raw) & (raw > 0)
        if (depth[valid] == 0).any():
            raise UserError(f"{where}: depths beyond 0..65.535 m. Are they in metres?")
        images = {"rgb": stored["images"], "depth": depth, "mask_valid": valid_mask(valid)}
        if self.ids is not None:
            labels = stored["labels"]
            if int(labels.max()) >= len(self.ids):
                raise UserError(
                    f"{where}: label {int(labels.max())} is not among the {len(self.ids) - 1} "
                    f"classes of {job.mapping}. The two files do not match."
                )
            images["semseg"] = self.ids[labels]
        return images


def _check_labelled(job: Nyuv2) -> int:
    """Check shapes and types of the labelled file; return its number of images."""
    with open_hdf5(job.labelled, job.keys) as file:
        shapes = {key: tuple(file[key].shape) for key in job.keys}
        types = {key: str(file[key].dtype) for key in job.keys}
    described = "\n".join(f"  {key} {shape}" for key, shape in shapes.items())
    n, _, width, height = shapes["images"] if len(shapes["images"]) == 4 else (0, 0, 0, 0)
    expected = {key: (n, width, height) for key in job.keys} | {"images": (n, 3, width, height)}
    if shapes != expected or height > width or not n:
        raise UserError(
            f"{job.labelled}: expected images (N, 3, W, H) and the others (N, W, H), W >= H, "
            f"which is how HDF5 shows MATLAB's H x W x N; found\n{described}"
        )
    wrong = [f"{key} is {types[key]}" for key in job.keys if types[key] not in _TYPES[key]]
    if wrong:
        raise UserError(f"{job.labelled}: {', '.join(wrong)}. Is it the right file?")
    if job.crop and (height < INSIDE[0].stop or width < INSIDE[1].stop):
        raise UserError(
            f"{job.labelled}: the border of {height} x {width} images is not known, only that of "
            "480 x 640. Remove --crop_border."
        )
    return int(n)


def _read_mapping(path: Path) -> npt.NDArray[np.uint8]:
    """Class id 0..40 by label; label 0 is void."""
    classes = read_mat(path, [MAPPING_KEY])[MAPPING_KEY]
    if classes.min() < 0 or classes.max() > CLASSES:
        raise UserError(
            f"{path}: {MAPPING_KEY} has values {classes.min()}..{classes.max()}, expected "
            f"1..{CLASSES}. Is it the mapping to {CLASSES} classes?"
        )
    return np.concatenate([[0], classes]).astype(np.uint8)


def _read_splits(path: Path, count: int) -> list[tuple[str, int]]:
    """Split and index (from 0) of every image in a split."""
    numbers = read_mat(path, list(SPLIT_KEYS.values()))
    samples = [(s, int(i) - 1) for s, key in SPLIT_KEYS.items() for i in numbers[key]]
    wrong = [i + 1 for _, i in samples if not 0 <= i < count]
    if wrong:
        raise UserError(
            f"{path}: image {wrong[0]} does not exist, the labelled file has {count}. The two "
            "files do not match."
        )
    twice = [i + 1 for i, times in Counter(i for _, i in samples).items() if times > 1]
    if twice:
        raise UserError(f"{path}: image {twice[0]} is listed twice. Is it the right file?")
    return samples
