"""Derived modalities of rooms, computed from photos, depth and labels.

They imitate other sensors, in typical formats: edges as 8-bit PNG, six spectral bands as a 16-bit
array, temperatures as a float TIFF with missing values.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from multimae.specs.errors import UserError
from tools.common.staging import clean_staging, write_file
from tools.rooms.classes import NYU40_CLASSES

Array = npt.NDArray[Any]
_F32 = npt.NDArray[np.float32]
_SOURCES = {"rgb": (".jpg", ".png"), "depth": (".png",), "semseg": (".png",)}
_COLOURED = frozenset({"rgb"})
_STEP_MM = 400.0  # depth discontinuity of an edge of full strength
_AMBIENT = 21.0
_WARMER = {
    **{"lamp": 24.0, "television": 11.0, "refrigerator": 4.0, "person": 12.0, "ceiling": 1.6},
    **{"floor": -1.6, "window": -7.0, "blinds": -3.0, "curtain": -2.2, "sink": -1.2, "bed": 0.8},
}
_OUT_OF_RANGE_MM = 5500
_SOFT = 0.01  # radius of the thermal camera's blur, of the image's side


@dataclass(frozen=True)
class Room:
    """One stored sample: rgb uint8 (H, W, 3), depth in mm uint16 (H, W), class ids uint8 (H, W)."""

    rgb: Array
    depth: Array
    semseg: Array


def edges(room: Room) -> bytes:
    """Outlines as 8-bit PNG: gradients of brightness, and jumps of depth."""
    grey = _blurred(room.rgb.astype(np.float32).mean(axis=-1) / 255, 1.0)
    rows, columns = np.gradient(grey)
    texture = 5 * np.hypot(rows, columns)
    depth = room.depth.astype(np.float32)
    jump = np.zeros_like(depth)
    # The second difference is zero on planes of any slope.
    jump[1:-1] = np.abs(depth[2:] - 2 * depth[1:-1] + depth[:-2])
    jump[:, 1:-1] = np.maximum(
        jump[:, 1:-1], np.abs(depth[:, 2:] - 2 * depth[:, 1:-1] + depth[:, :-2])
    )
    strength = np.clip(np.maximum(texture, jump / _STEP_MM), 0, 1)
    return _encoded(Image.fromarray((255 * strength).round().astype(np.uint8)), "PNG")


def multispectral(room: Room) -> bytes:
    """Blue, green, red, red edge, near and short-wave infrared, uint16 (H, W, 6), as ``.npy``.

    The visible bands are linear RGB. The others are brightness times a reflectance drawn per
    class.
    """
    srgb = room.rgb.astype(np.float32) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    light = linear @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    table = np.random.default_rng(6).uniform(0.15, 1.0, (len(NYU40_CLASSES), 3)).astype(np.float32)
    hidden = light[..., None] ** 0.7 * table[np.minimum(room.semseg, len(table) - 1)]
    red_edge = 0.5 * hidden[..., 0] + 0.5 * linear[..., 0]
    visible = [linear[..., channel] for channel in (2, 1, 0)]
    bands = [*visible, red_edge, hidden[..., 1], hidden[..., 2]]
    stream = io.BytesIO()
    np.save(stream, (np.clip(np.stack(bands, axis=-1), 0, 1) * 65535).round().astype(np.uint16))
    return stream.getvalue()


def thermal(room: Room) -> bytes:
    """Degrees Celsius as float32 TIFF; NaN beyond the range of the sensor.

    Temperature depends on the class and rises with height in the image and with brightness; the
    image is blurred like that of a thermal camera.
    """
    warmer = np.array([_WARMER.get(name, 0.0) for name in NYU40_CLASSES], np.float32)
    degrees = _AMBIENT + warmer[np.minimum(room.semseg, len(warmer) - 1)]
    degrees += 3 * (room.rgb.astype(np.float32).mean(axis=-1) / 255 - 0.5)
    degrees += np.linspace(1.5, -1.5, len(degrees), dtype=np.float32)[:, None]
    soft = _blurred(degrees, _SOFT * len(degrees))
    soft[room.depth > _OUT_OF_RANGE_MM] = np.nan
    return _encoded(Image.fromarray(soft), "TIFF", compression="tiff_adobe_deflate")


@dataclass(frozen=True)
class Derived:
    """A derived modality: file extension, and the encoder of a room."""

    suffix: str
    encode: Callable[[Room], bytes]


DERIVED = {
    "edges": Derived(".png", edges),
    "multispectral": Derived(".npy", multispectral),
    "thermal": Derived(".tiff", thermal),
}


def derive(root: Path, names: list[str]) -> int:
    """Add modalities to a folder of rooms; existing files are kept.

    Args:
        root: Folder with rgb, depth and semseg, or one with such folders (train, val).
        names: Keys of :data:`DERIVED`.

    Returns:
        Number of samples.

    Raises:
        UserError: The folder has no rooms, or a sample lacks a file.
    """
    roots = [root] if (root / "rgb").is_dir() else sorted(p.parent for p in root.glob("*/rgb"))
    if not roots:
        raise UserError(f"{root} holds no rooms: it needs the folders {', '.join(_SOURCES)}")
    count = 0
    for each in roots:
        with clean_staging(each):
            count += _derive(each, names)
    return count


def _derive(root: Path, names: list[str]) -> int:
    photos = sorted(p for p in (root / "rgb").rglob("*") if p.suffix in _SOURCES["rgb"])
    for photo in photos:
        key = photo.relative_to(root / "rgb").with_suffix("")
        targets = {n: root / n / key.with_suffix(DERIVED[n].suffix) for n in names}
        missing = {n: path for n, path in targets.items() if not path.exists()}
        if missing:
            room = _load(root, key)
            for name, path in missing.items():
                write_file(root, path, DERIVED[name].encode(room))
    return len(photos)


def _load(root: Path, key: Path) -> Room:
    arrays = {}
    for name, suffixes in _SOURCES.items():
        paths = [root / name / key.with_suffix(suffix) for suffix in suffixes]
        found = next((path for path in paths if path.exists()), None)
        if found is None:
            raise UserError(f"{paths[0]} does not exist: rooms need {', '.join(_SOURCES)}")
        try:
            with Image.open(found) as image:
                arrays[name] = np.asarray(image.convert("RGB") if name in _COLOURED else image)
        except OSError as err:
            raise UserError(
                f"{found} cannot be read ({err}). Delete it and render it again."
            ) from err
    return Room(**arrays)


def _blurred(values: _F32, sigma: float) -> _F32:
    """Gaussian blur with edge padding."""
    reach = max(1, round(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(values, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], "edge")
        length = values.shape[axis]
        values = sum(
            np.float32(w) * padded.take(np.arange(i, i + length), axis)
            for i, w in enumerate(kernel)
        )
    return np.asarray(values, np.float32)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
