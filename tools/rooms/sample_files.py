"""File layouts of rooms: paths, index files, and writing of samples."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.common.png import encode_png
from tools.common.staging import write_file
from tools.rooms.classes import NYU40_CLASSES
from tools.rooms.sample import SPLITS, RoomSample, room_type

ImageArray = NDArray[np.uint8] | NDArray[np.uint16]
LAYOUTS = ("multimae", "taskonomy")
MODALITIES = ("rgb", "depth", "semseg", "normals", "mask_valid")
TASKS = (
    "rgb",
    "depth_zbuffer",
    "depth_euclidean",
    "normal",
    "reshading",
    "edge_texture",
    "edge_occlusion",
)
POINTS_PER_BUILDING = 50
TASKONOMY_UNIT = 1 / 512
JPEG_QUALITY = 93
VERSION = 1


class SettingsError(ValueError):
    """The folder has samples made with other settings."""


@dataclass(frozen=True)
class Settings:
    """Settings common to all samples of a folder.

    Attributes:
        size: Width and height in pixels.
        seed: Seed of the data set.
        layout: One of LAYOUTS.
        furniture: SHA-256 digests of the furniture archives, in order.
        version: Version of the generator's output.
    """

    size: int
    seed: int
    layout: str
    furniture: tuple[str, ...] = ()
    version: int = VERSION


def claim_folder(out: Path, settings: Settings) -> None:
    """Record the settings of a folder, or check them against the recorded ones.

    Args:
        out: Data set folder; made if missing.
        settings: Settings of this run.

    Raises:
        SettingsError: The folder was made with other settings, or rooms.json is unreadable.
    """
    out.mkdir(parents=True, exist_ok=True)
    mark = out / "rooms.json"
    mine = json.loads(json.dumps(asdict(settings)))
    if mark.exists():
        try:
            theirs = json.loads(mark.read_text())
        except json.JSONDecodeError as error:
            raise SettingsError(f"{mark} is not readable: {error}") from error
        clash = [k for k in mine if theirs.get(k) != mine[k]]
        if clash:
            list_ = ", ".join(f"{k} is {theirs.get(k)!r}, asked {mine[k]!r}" for k in clash)
            raise SettingsError(f"{out} was made with other settings: {list_}")
        return
    write_file(out, mark, (json.dumps(mine, indent=2) + "\n").encode())


def write_index(out: Path, settings: Settings, counts: dict[str, int]) -> None:
    """Write classes.json (multimae) or splits.json (taskonomy).

    Args:
        out: Data set folder.
        settings: Settings of this run.
        counts: Number of samples of this run by split.
    """
    if settings.layout == "multimae":
        text = json.dumps({"classes": list(NYU40_CLASSES)}, indent=2) + "\n"
        for folder in (out, *(out / s for s in SPLITS)):
            write_file(out, folder / "classes.json", text.encode())
        return
    splits: dict[str, list[str]] = {}
    for split in SPLITS:
        names = {building(split, i) for i in range(counts.get(split, 0))}
        # Keep the buildings that a longer run into the same folder has made.
        names |= {p.name for p in (out / "rgb").glob(f"{split}_*")}
        splits[split] = sorted(names)
    write_file(out, out / "splits.json", (json.dumps(splits, indent=2) + "\n").encode())


def building(split: str, index: int) -> str:
    """Return the building that a sample of the taskonomy layout belongs to."""
    return f"{split}_{index // POINTS_PER_BUILDING:04d}"


def sample_paths(out: Path, layout: str, split: str, index: int) -> dict[str, Path]:
    """Return the files of a sample by modality.

    Args:
        out: Data set folder.
        layout: One of LAYOUTS.
        split: "train" or "val".
        index: Number of the sample.
    """
    if layout == "multimae":
        room, name = room_type(index), f"{index:06d}"
        return {
            m: out / split / m / room / f"{name}.{'jpg' if m == 'rgb' else 'png'}"
            for m in MODALITIES
        }
    stem = f"point_{index % POINTS_PER_BUILDING}_view_0_domain"
    return {t: out / t / building(split, index) / f"{stem}_{t}.png" for t in TASKS}


def is_complete(out: Path, layout: str, split: str, index: int) -> bool:
    """Tell whether all files of a sample exist."""
    return all(p.exists() for p in sample_paths(out, layout, split, index).values())


def write_sample(out: Path, layout: str, split: str, index: int, sample: RoomSample) -> None:
    """Write all files of a sample.

    Args:
        out: Data set folder.
        layout: One of LAYOUTS.
        split: "train" or "val".
        index: Number of the sample.
        sample: The sample.
    """
    images = aligned_images(sample) if layout == "multimae" else _taskonomy(sample)
    for key, path in sample_paths(out, layout, split, index).items():
        write_file(out, path, _encode(images[key], path.suffix))


def aligned_images(sample: RoomSample) -> dict[str, ImageArray]:
    """Return the images of the multimae layout by folder."""
    return {
        "rgb": sample.rgb,
        "depth": sample.depth_mm,
        "semseg": sample.semseg,
        "normals": sample.normals,
        "mask_valid": sample.mask_valid,
    }


def _taskonomy(sample: RoomSample) -> dict[str, ImageArray]:
    """Return the images of the taskonomy layout; depth in 1/512 m, 65535 where invalid."""
    bad = sample.mask_valid == 0

    def units(depth_mm: NDArray[np.uint16] | NDArray[np.float32]) -> NDArray[np.uint16]:
        value = np.rint(depth_mm.astype(np.float64) / 1000 / TASKONOMY_UNIT)
        return np.where(bad, 65535, np.clip(value, 0, 65534)).astype(np.uint16)

    return {
        "rgb": sample.rgb,
        "depth_zbuffer": units(sample.depth_mm),
        "depth_euclidean": units(sample.depth_euclidean_mm()),
        "normal": sample.normals,
        "reshading": sample.reshading(),
        "edge_texture": sample.edge_texture(),
        "edge_occlusion": sample.edge_occlusion(),
    }


def _encode(image: ImageArray, suffix: str) -> bytes:
    """Encode an image as JPEG or PNG; uint16 becomes a 16-bit grey PNG."""
    if suffix == ".png":
        return encode_png(image)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
