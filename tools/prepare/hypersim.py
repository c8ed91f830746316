"""Hypersim: from its HDF5 files to folders (Roberts et al. 2021).

A frame is ``SCENE/images/scene_CAM_final_preview/frame.IIII.tonemap.jpg`` with, in
``scene_CAM_geometry_hdf5``, ``frame.IIII.depth_meters.hdf5`` (distance from the optical centre) and
``frame.IIII.semantic.hdf5`` (NYU40 ids, -1 = void).
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from multimae.specs.errors import UserError, bullet_list
from tools.common.jobs import INCOMPLETE, PRESENT, WRITTEN, Tally, run_jobs, summary
from tools.common.target_folder import Link, Target, millimetres, valid_mask
from tools.prepare.matlab import open_hdf5
from tools.rooms.classes import NYU40_CLASSES

SPLITS = ("train", "val", "test")
COLUMNS = (
    "scene_name",
    "camera_name",
    "frame_id",
    "included_in_public_release",
    "split_partition_name",
)
CLASSES = len(NYU40_CLASSES) - 1
VOID = -1
FOCAL, FOCAL_WIDTH = 886.81, 1024  # focal length in pixels at this image width
UNUSABLE = "without labels or depth, skipped"
_SCENE, _CAMERA = re.compile(r"ai_\d{3}_\d{3}"), re.compile(r"cam_\d{2}")


class Frame(NamedTuple):
    """One image: split, scene, camera and frame number."""

    split: str
    scene: str
    camera: str
    number: int

    def sources(self, root: Path) -> tuple[Path, Path, Path]:
        """Downloaded files: image, distance, labels."""
        images = root / self.scene / "images"
        frame = f"frame.{self.number:04d}"
        geometry = images / f"scene_{self.camera}_geometry_hdf5"
        return (
            images / f"scene_{self.camera}_final_preview" / f"{frame}.tonemap.jpg",
            geometry / f"{frame}.depth_meters.hdf5",
            geometry / f"{frame}.semantic.hdf5",
        )

    def results(self, target: Target) -> tuple[Path, Path, Path, Path]:
        """Files to write: rgb, depth, semseg, mask_valid."""
        key = f"{self.scene}/{self.camera}_frame_{self.number:04d}"
        return (
            target.path(self.split, "rgb", key, ".jpg"),
            target.path(self.split, "depth", key),
            target.path(self.split, "semseg", key),
            target.path(self.split, "mask_valid", key),
        )


@dataclass(frozen=True)
class Hypersim:
    """What to prepare.

    Attributes:
        source: Folder of the scenes' folders.
        split_csv: ``metadata_images_split_scene_v1.csv``.
        link: How images are linked or copied.
        skip_incomplete: Skip frames with missing files instead of failing.
    """

    source: Path
    split_csv: Path
    link: Link = "hard"
    skip_incomplete: bool = False


def prepare_hypersim(job: Hypersim, target: Target, workers: int = 1) -> str:
    """Write ``{train,val,test}/{rgb,depth,semseg,mask_valid}``.

    Returns:
        The summary.

    Raises:
        UserError: Files are missing or invalid.
        OSError: A file cannot be written.
    """
    if not job.source.is_dir():
        raise UserError(f"{job.source} is not a folder: --source holds ai_VVV_NNN/images/...")
    frames = _read_split(job.split_csv)
    done = [frame for frame in frames if target.is_done(frame.results(target))]
    todo, incomplete = _split_complete(job, sorted(set(frames) - set(done)))
    if not done and not todo:
        raise UserError(f"{job.source} has no complete frame of {job.split_csv}: see the layout.")
    target.write_class_names(NYU40_CLASSES, SPLITS)
    tally = Counter((frame.split, PRESENT) for frame in done)
    tally += run_jobs(_Convert(job, target), todo, workers, "img")
    tally += Counter((frame.split, INCOMPLETE) for frame in incomplete)
    return summary("hypersim", tally, target.root)


def planar_depth(distance: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Depth along the optical axis from the distance to the optical centre, same unit, (H, W)."""
    height, width = distance.shape
    return distance.astype(np.float64) / _rays(height, width)


@lru_cache(maxsize=4)
def _rays(height: int, width: int) -> npt.NDArray[np.float64]:
    """Length (H, W) of the ray through each pixel's centre to the plane at depth 1."""
    focal = FOCAL * width / FOCAL_WIDTH
    x = (np.arange(width) - (width - 1) / 2) / focal
    y = (np.arange(height) - (height - 1) / 2) / focal
    return np.sqrt(1 + x[None, :] ** 2 + y[:, None] ** 2)


@dataclass(frozen=True)
class _Convert:
    """Convert one frame."""

    job: Hypersim
    target: Target

    def __call__(self, frame: Frame) -> Tally:
        image, distance, labels = frame.sources(self.job.source)
        rgb, *paths = frame.results(self.target)
        semseg = _semseg(labels)
        depth = millimetres(planar_depth(_read(distance, "f")))
        if not (_size(image) == depth.shape == semseg.shape):
            raise UserError(
                f"{image}: the frame's files differ in size: image {_size(image)}, depth "
                f"{depth.shape}, labels {semseg.shape} (H, W). Download them again."
            )
        if not depth.any() or not semseg.any():
            return Counter({(frame.split, UNUSABLE): 1})
        stored: list[npt.NDArray[Any]] = [depth, semseg, valid_mask(depth > 0)]
        for path, pixels in zip(paths, stored, strict=True):
            self.target.write_png(path, pixels)
        self.target.add_file(rgb, image, self.job.link)
        return Counter({(frame.split, WRITTEN): 1})


def _semseg(path: Path) -> npt.NDArray[np.uint8]:
    """Ids 1..40, 0 = void."""
    ids = _read(path, "iu").astype(np.int64)
    low, high = int(ids.min()), int(ids.max())
    if low < VOID or high > CLASSES:
        raise UserError(
            f"{path}: class id {low if low < VOID else high} is outside {VOID}..{CLASSES}."
        )
    return np.where(ids == VOID, 0, ids).astype(np.uint8)


def _read(path: Path, kinds: str) -> npt.NDArray[Any]:
    with open_hdf5(path, ["dataset"]) as file:
        array: npt.NDArray[Any] = np.asarray(file["dataset"])
    if array.ndim != 2 or not array.size or array.dtype.kind not in kinds:
        raise UserError(
            f"{path}: {array.dtype} of shape {array.shape} is not a map (H, W) of "
            f"{'metres' if kinds == 'f' else 'class ids'}. Is it the right file?"
        )
    return array


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as err:
        raise UserError(f"{path} cannot be read ({err}). Download it again.") from err


def _read_split(path: Path) -> list[Frame]:
    """Frames of the public release."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise UserError(f"split file {path}: cannot be read ({err}).") from err
    if not rows or not set(COLUMNS) <= rows[0].keys():
        raise UserError(f"split file {path}: expected the columns {', '.join(COLUMNS)}.")
    frames = []
    for line, row in enumerate(rows, start=2):
        scene, camera, number, released, split = ((row[c] or "").strip() for c in COLUMNS)
        if released.lower() != "true":
            continue
        known = _SCENE.fullmatch(scene) and _CAMERA.fullmatch(camera) and number.isdecimal()
        if not known or split not in SPLITS:
            raise UserError(f"split file {path}, line {line}: {scene}, {camera}, {number}, {split}")
        frames.append(Frame(split, scene, camera, int(number)))
    if len({frame[1:] for frame in frames}) != len(frames):
        raise UserError(f"split file {path}: frames are listed twice. Is it the right file?")
    return frames


def _split_complete(job: Hypersim, frames: list[Frame]) -> tuple[list[Frame], list[Frame]]:
    """Split into frames with all files and incomplete ones, if these may be skipped."""
    missing = {f: [p for p in f.sources(job.source) if not p.is_file()] for f in frames}
    lacking = [frame for frame in frames if missing[frame]]
    if lacking and not job.skip_incomplete:
        raise UserError(
            f"{len(lacking)} of {len(frames)} frames of {job.split_csv} have missing files in "
            f"{job.source}:\n{bullet_list([str(p) for f in lacking for p in missing[f]])}\n"
            "Download them, or skip these frames with --skip_incomplete."
        )
    return [frame for frame in frames if not missing[frame]], lacking
