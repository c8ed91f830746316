"""Files -> stored pixels, faster than Pillow and with its every bit.

JPEGs are decoded by libjpeg-turbo (jpegs.py), grey PNGs by libpng through torchvision.
Both are compared with Pillow once per process and left alone if they differ from it. What they do
not take (other formats, EXIF orientations, damaged files) goes to Pillow, whose word also is the
last on what is wrong with a file.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_png

from multimae.images.files import check_pixels
from multimae.images.pixels import Array, ImageError, Pixels
from multimae.images.readers import read
from multimae.specs.modalities import Modality
from utils.data.jpegs import decode_jpeg

_PNG = b"\x89PNG\r\n\x1a\n"
# What may say that an image has to be turned, or that pixels are not what they seem.
_PNG_MARKS = (b"eXIf", b"tRNS", b"XML:com.adobe.xmp", b"Raw profile type", b"acTL")
_KEPT_BLOCKS = 8


def tune() -> None:
    """Let Pillow keep memory of images, which it otherwise asks the system for each time."""
    core: Any = Image.core  # type: ignore[attr-defined]
    core.set_blocks_max(_KEPT_BLOCKS)


def read_file(path: str, modality: Modality) -> bytes:
    """A file, or an ImageError that says why it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as err:
        raise ImageError(
            f"{path}: modality '{modality.name}' cannot be read ({err}). Replace it, or remove "
            "the sample."
        ) from err


def read_pixels(path: str, modality: Modality, patch_size: int, data: bytes) -> Pixels:
    """As :func:`multimae.images.readers.read`, faster; 8-bit images may be arrays, too."""
    array = decode(data)
    if array is None:
        return read(Path(path), modality, patch_size, data)
    return check_pixels(array, path, modality, patch_size)


def decode(data: bytes) -> Array | None:
    """Values of an upright RGB JPEG or grey PNG, as Pillow gives them.

    Returns:
        ``(H, W, 3)`` or ``(H, W)``; ``None`` for all other files, damaged ones included.
    """
    if data.startswith(_PNG):
        return _png(data) if _is_grey_png(data) and _png_agrees() else None
    return decode_jpeg(data)


def _is_grey_png(data: bytes) -> bool:
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    small = width * height <= (Image.MAX_IMAGE_PIXELS or width * height)
    depth, colours, interlaced = (*data[24:26], data[28]) if len(data) > 57 else (0, 0, 0)
    plain = depth in (8, 16) and colours == 0 and not interlaced
    return small and plain and not any(mark in data for mark in _PNG_MARKS)


def _png(data: bytes) -> Array | None:
    try:
        image = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return None
    return cast(Array, image[0].numpy()) if len(image) == 1 else None


@lru_cache
def _png_agrees() -> bool:
    """Whether torchvision and Pillow have decoders that give the same pixels."""
    values = np.random.default_rng(0).integers(0, 65536, (43, 37), np.uint16)
    for array in (values, values.astype(np.uint8)):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        decoded = _png(file.getvalue())
        if decoded is None or decoded.dtype != array.dtype or not np.array_equal(decoded, array):
            return False
    return True
