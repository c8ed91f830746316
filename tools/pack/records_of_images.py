"""What a pack stores of an image: its file, or its pixels; made smaller, if that is asked for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from multimae.images.pixels import Array
from multimae.images.readers import decode_fast
from multimae.specs.modalities import default_table
from utils.data.pack.layout import Kind

_MODES = frozenset({"L", "I;16", "RGB"})
_QUALITY = 95  # of JPEGs that are made smaller


def pixels_of(data: bytes, keep_jpeg: bool) -> Array | None:
    """What is stored instead of a file: grey or RGB pixels; nothing for what stays a file."""
    if data.startswith(b"\xff\xd8") and keep_jpeg:
        return None
    values = decode_fast(data)
    if values is not None:
        return values
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return np.asarray(upright) if upright.mode in _MODES else None
    except Exception:  # whoever reads the pack gets the file, and says what is wrong with it
        return None


def kind_of(values: Array) -> Kind:
    """Kind of the record of pixels."""
    if values.ndim == 3:
        return Kind.RGB
    return Kind.GREY16 if values.dtype == np.uint16 else Kind.GREY8


def smaller(data: bytes, folder: str, max_size: int | None) -> bytes:
    """The file of an image whose longest side is at most ``max_size``, if it can be decoded."""
    if max_size is None:
        return data
    try:
        with Image.open(io.BytesIO(data)) as image:
            if max(image.size) <= max_size:
                return data
            name = image.format or ""
            upright = ImageOps.exif_transpose(image)
            shape = [max(1, round(side * max_size / max(upright.size))) for side in upright.size]
            method = Image.Resampling.BICUBIC if _is_smooth(folder, name) else None
            small = upright.resize((shape[0], shape[1]), method or Image.Resampling.NEAREST)
            file = io.BytesIO()
            small.info.pop("exif", None)
            how: dict[str, Any] = {"WEBP": {"lossless": True}}.get(name, {})
            if name == "JPEG":
                how = {"quality": _QUALITY, "subsampling": 0}
            small.save(file, name, **how)
            return file.getvalue()
    except Exception:  # as above
        return data


def _is_smooth(folder: str, image_format: str) -> bool:
    """Whether values between pixels make sense: the table says so, or the format."""
    for row in default_table().values():
        if row.data_folder == folder:
            return row.interpolation != "nearest"
    return image_format == "JPEG"
