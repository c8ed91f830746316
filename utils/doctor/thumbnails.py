"""Pictures of samples for the report: every modality, as training would see it."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from multimae.images import Pixels
from multimae.modalities import Modality
from utils.app.pictures import encode, of_stored
from utils.doctor.files import examine
from utils.doctor.listing import File

_SIDE = 144


def picture(file: File, row: Modality) -> str | None:
    """A small picture of a file as a data URI; ``None`` if it cannot be read."""
    pixels = examine(file.path, "", row, row.num_classes).pixels
    if pixels is None:
        return None
    small = _small(pixels)
    return encode(of_stored(small, dataclasses.replace(row, stride=1)))


def _small(pixels: Pixels) -> np.ndarray:
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
