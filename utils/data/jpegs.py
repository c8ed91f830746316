"""JPEGs by libjpeg-turbo through simplejpeg: Pillow's pixels, faster. Needs no torch.

Compared with Pillow once per process, and left alone if it differs. What it does not take goes to
Pillow, whose word also is the last on what is wrong with a file.
"""

from __future__ import annotations

import io
import math
import struct
from functools import lru_cache
from importlib.util import find_spec as _find_spec
from typing import cast

import numpy as np
from PIL import Image

from multimae.images.pixels import Array

_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112  # of EXIF
# JPEG markers: sizes (SOF), where those end (SOS, EOI), Adobe's colour transform, metadata.
_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SCAN, _END, _ADOBE, _METADATA = 0xDA, 0xD9, 0xEE, 0xE1


find_spec = lru_cache(_find_spec)


def decode_jpeg(data: bytes) -> Array | None:
    """Values ``(H, W, 3)`` of an upright RGB JPEG as Pillow gives them; ``None`` of all others."""
    return _decoded(data) if jpeg_size(data) and _agrees() else None


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


def _decoded(data: bytes) -> Array | None:
    import simplejpeg

    try:
        # Strict: what libjpeg only warns about is Pillow's to judge.
        return cast(Array, simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False))
    except ValueError:
        return None


@lru_cache
def _agrees() -> bool:
    """Whether simplejpeg and Pillow have decoders that give the same pixels."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (43, 37, 3), np.uint8))
    image = image.resize((86, 74))
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            file = io.BytesIO()
            image.save(file, "JPEG", subsampling=subsampling, progressive=progressive)
            array = _decoded(file.getvalue())
            if array is None or not np.array_equal(array, np.asarray(Image.open(file))):
                return False
    return True
