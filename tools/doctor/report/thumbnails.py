"""Thumbnails of stored files for the report."""

from __future__ import annotations

import numpy as np
from PIL import Image

from multimae.images.pixels import Array, Pixels, storage_dtype
from multimae.plotting.colours import Picture, label_palette, scalar_colours
from multimae.specs.modalities import Modality
from tools.common.data_uri import encode
from tools.doctor.files.file_checks import check_file
from tools.doctor.files.file_listing import File
from tools.doctor.files.file_records import is_scalar_map

_SIDE = 144


def thumbnail_uri(file: File, modality: Modality) -> str | None:
    """Thumbnail of a file as a data URI; ``None`` if it cannot be read."""
    pixels = check_file(file, "", modality, modality.num_classes).pixels
    return None if pixels is None else encode(colourize(_shrink(pixels), modality))


def colourize(stored: Array, modality: Modality) -> Picture:
    """Stored values ``[H, W]`` or ``[H, W, C]`` as RGB; invalid values are grey."""
    if modality.is_labels:
        return label_palette(modality.num_classes)[
            np.where(stored < modality.num_classes, stored, 0)
        ]
    if is_scalar_map(modality):
        valid = (stored > 0) & (stored < np.iinfo(storage_dtype(modality)).max)
        low, high = np.percentile(stored[valid], [2, 98]) if valid.any() else (0, 1)
        return scalar_colours(np.where(valid, stored, np.nan), float(low), float(high))
    colours = stored[..., None] if stored.ndim == 2 else stored
    if colours.shape[2] < 3:
        colours = np.repeat(colours[..., :1], 3, axis=2)
    colours = np.nan_to_num(colours[..., :3].astype(np.float32), posinf=0, neginf=0)
    low, scale = 0.0, 255.0 / modality.max_value
    if modality.storage == "float":
        low = float(colours.min())
        scale = 255.0 / max(float(colours.max()) - low, 1e-6)
    scaled = (colours - low) * scale
    return np.asarray(scaled.clip(0, 255).round(), np.uint8)


def _shrink(pixels: Pixels) -> Array:
    """Shrink to at most ``_SIDE`` pixels; arrays by nearest neighbour, which keeps class ids."""
    if isinstance(pixels, Image.Image):
        copy = pixels.copy()
        copy.thumbnail((_SIDE, _SIDE))
        return np.asarray(copy)
    h, w = pixels.shape[:2]
    scale = max(h, w, _SIDE) / _SIDE
    rows = (np.arange(max(1, int(h / scale))) * scale).astype(int)
    columns = (np.arange(max(1, int(w / scale))) * scale).astype(int)
    return np.ascontiguousarray(pixels[rows][:, columns])
