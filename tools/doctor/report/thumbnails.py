"""Pictures of samples for the report: every modality, as it is stored."""

from __future__ import annotations

import numpy as np
from PIL import Image

from multimae.images.pixels import Array, Pixels, storage_dtype
from multimae.plotting.colours import Picture, label_palette, scalar_colours
from multimae.specs.modalities import Modality
from tools.common.data_uri import encode
from tools.doctor.files.file_checks import examine
from tools.doctor.files.file_listing import File
from tools.doctor.files.records import is_scalar_map

_SIDE = 144


def picture(file: File, row: Modality) -> str | None:
    """A small picture of a file as a data URI; ``None`` if it cannot be read."""
    pixels = examine(file.path, "", row, row.num_classes).pixels
    return None if pixels is None else encode(drawn(_small(pixels), row))


def drawn(stored: Array, row: Modality) -> Picture:
    """Stored values ``[H, W]`` or ``[H, W, C]`` in colours; what is no value is grey."""
    if row.is_labels:
        return label_palette(row.num_classes)[np.where(stored < row.num_classes, stored, 0)]
    if is_scalar_map(row):
        valid = (stored > 0) & (stored < np.iinfo(storage_dtype(row)).max)
        low, high = np.percentile(stored[valid], [2, 98]) if valid.any() else (0, 1)
        return scalar_colours(np.where(valid, stored, np.nan), float(low), float(high))
    colours = stored[..., None] if stored.ndim == 2 else stored
    if colours.shape[2] < 3:
        colours = np.repeat(colours[..., :1], 3, axis=2)
    scaled = colours[..., :3] * (255.0 / row.max_value)
    return np.asarray(scaled.clip(0, 255).round(), np.uint8)


def _small(pixels: Pixels) -> Array:
    """At most so many pixels a side; values are picked, not averaged, so that ids stay ids."""
    if isinstance(pixels, Image.Image):
        copy = pixels.copy()
        copy.thumbnail((_SIDE, _SIDE))
        return np.asarray(copy)
    h, w = pixels.shape[:2]
    scale = max(h, w, _SIDE) / _SIDE
    rows = (np.arange(max(1, int(h / scale))) * scale).astype(int)
    columns = (np.arange(max(1, int(w / scale))) * scale).astype(int)
    return np.ascontiguousarray(pixels[rows][:, columns])
