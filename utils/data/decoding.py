"""Files -> stored pixels, faster than Pillow and with its every bit.

JPEGs are decoded by libjpeg-turbo through simplejpeg, grey PNGs by libpng through torchvision.
Both are compared with Pillow once per process and left alone if they differ from it. What they do
not take (other formats, EXIF orientations, damaged files) goes to Pillow, whose word also is the
last on what is wrong with a file.
"""

from __future__ import annotations

import io
import math
import struct
from functools import lru_cache
from importlib.util import find_spec as _find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_png

from multimae.images import check_pixels
from multimae.modalities import Modality
from multimae.pixels import Array, ImageError, Pixels
from multimae.readers import read

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # of EXIF
# JPEG markers: sizes (SOF), where those end (SOS, EOI), Adobe's colour transform, metadata.
_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SCAN, _END, _ADOBE, _METADATA = 0xDA, 0xD9, 0xEE, 0xE1
# What may say that an image has to be turned, or that pixels are not what they seem.
_PNG_MARKS = (b"eXIf", b"tRNS", b"XML:com.adobe.xmp", b"Raw profile type", b"acTL")
_KEPT_BLOCKS = 8


find_spec = lru_cache(_find_spec)


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
    """As :func:`multimae.readers.read`, faster; 8-bit images may be arrays, too."""
    array = decode(data)
    if array is None:
        return read(Path(path), modality, patch_size, data)
    return check_pixels(array, path, modality, patch_size)


def decode(data: bytes) -> Array | None:
    """Values of an upright RGB JPEG or grey PNG, as Pillow gives them.

    Returns:
        ``(H, W, 3)`` or ``(H, W)``; ``None`` for all other files, damaged ones included.
    """
    if data.startswith(_JPEG):
        return _jpeg(data) if jpeg_size(data) and _jpeg_agrees() else None
    if data.startswith(_PNG):
        return _png(data) if _is_grey_png(data) and _png_agrees() else None
    return None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """``(H, W)`` of an upright JPEG with RGB colours that simplejpeg can decode, else ``None``."""
    size, place, metadata = None, 2, False
    if not data.startswith(_JPEG) or find_spec("simplejpeg") is None:
        return None
    while place + 9 < len(data) and data[place] == 0xFF and data[place + 1] not in (_SCAN, _END):
        marker = data[place + 1]
        if marker in _SIZES:
            bits, channels = data[place + 4], data[place + 9]
            if size or bits != 8 or channels != 3:
                return None
            size = struct.unpack_from(">HH", data, place + 5)
        if marker == _ADOBE:  # colours may be stored otherwise
            return None
        metadata |= marker == _METADATA
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    if size is None or not min(size) or (metadata and not _is_upright(data)):
        return None
    small = size[0] * size[1] <= (Image.MAX_IMAGE_PIXELS or math.inf)
    return (size[0], size[1]) if small else None


def _is_upright(data: bytes) -> bool:
    """Whether the metadata of an image ask for no turning."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return bool(image.getexif().get(_ORIENTATION, 1) == 1)
    except Exception:  # Pillow has none of its own; it will say what is wrong when it decodes
        return False


def _jpeg(data: bytes) -> Array | None:
    import simplejpeg

    try:
        # Strict: what libjpeg only warns about is Pillow's to judge.
        return cast(Array, simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False))
    except ValueError:
        return None


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
def _jpeg_agrees() -> bool:
    """Whether simplejpeg and Pillow have decoders that give the same pixels."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (43, 37, 3), np.uint8))
    image = image.resize((86, 74))
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            file = io.BytesIO()
            image.save(file, "JPEG", subsampling=subsampling, progressive=progressive)
            array = _jpeg(file.getvalue())
            if array is None or not np.array_equal(array, np.asarray(Image.open(file))):
                return False
    return True


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
