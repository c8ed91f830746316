"""Files, Pillow images and arrays -> stored pixels, exactly as they are; see ``pixels.py``."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from multimae.images.pixels import (
    Array,
    ImageError,
    ImageLike,
    Pixels,
    array_pixels,
    check_readable,
    checked,
    class_ids,
    size_of,
    storage_dtype,
)
from multimae.specs.modalities import Modality

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""What is read; the names are Pillow's."""


def to_pixels(image: ImageLike, modality: Modality) -> Pixels:
    """Pixels of one image, wherever it comes from; see :func:`read`.

    Args:
        image: What the modality's files would hold.
        modality: Row of the table.

    Raises:
        ImageError: It does not fit the modality, or the file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return read(Path(image), modality)
    check_readable(modality)
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        return checked(upright, "image", modality)
    return array_pixels(np.asarray(image), "array", modality)


def read(path: Path, modality: Modality, patch_size: int = 1, data: bytes | None = None) -> Pixels:
    """Pixels of one file, upright.

    An EXIF orientation is applied to every modality, so a photograph and maps computed from its
    viewed form agree; maps computed from the raw sensor order do not fit such photographs.

    Args:
        path: Image file.
        modality: What the file should hold.
        patch_size: Patch side in full-resolution pixels; smaller images are refused.
        data: What the file holds, if that has been read already.

    Returns:
        8-bit images to be interpolated: Pillow mode L or RGB (palettes resolved, alpha dropped).
        Otherwise an array of :func:`storage_dtype`, ``(H, W)`` or ``(H, W, C)``: 16-bit values as
        stored, class ids as stored (of palette images, the index).

    Raises:
        ImageError: Unreadable file, wrong channels or bit depth, class id out of range, or an image
            smaller than a patch; with path, modality and remedy.
    """
    return check_pixels(_decode(path, modality, data), path, modality, patch_size)


def check_pixels(
    image: Image.Image | Array, source: object, modality: Modality, patch_size: int = 1
) -> Pixels:
    """Pixels of what a file holds, decoded and upright; see :func:`read`.

    Args:
        image: Pillow image, or the values of one of mode L (uint8 ``(H, W)``), I;16 (uint16
            ``(H, W)``) or RGB (uint8 ``(H, W, 3)``). The pixels of an array are an array.
        source: The file, for messages.
        modality: What the file should hold.
        patch_size: Patch side in full-resolution pixels; smaller images are refused.

    Raises:
        ImageError: As for :func:`read`.
    """
    (height, width), side = size_of(image), max(1, patch_size // modality.stride)
    if min(height, width) < side:
        raise ImageError(
            f"{source}: modality '{modality.name}' is {height} x {width} pixels, smaller "
            f"than one patch ({side} x {side}). Remove the sample or store it larger."
        )
    if not isinstance(image, Image.Image):
        if modality.is_labels and image.ndim == 2:
            return class_ids(image, source, modality)
        dtype = storage_dtype(modality)
        channels = 1 if image.ndim == 2 else image.shape[2]
        wanted = not modality.is_labels and channels == modality.num_channels
        if wanted and np.can_cast(image.dtype, dtype):
            return image.astype(dtype, copy=False)
        image = Image.fromarray(image)
    return checked(image, source, modality)


def _decode(path: Path, modality: Modality, data: bytes | None) -> Image.Image:
    """Open, decode and turn upright."""
    where = f"{path}: modality '{modality.name}'"
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > _most_pixels():
                raise Image.DecompressionBombError
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            upright: Image.Image = image
            return upright
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise ImageError(
            f"{where} has more pixels than Pillow's limit against decompression bombs "
            f"({_most_pixels():.0f}). Store a smaller image."
        ) from err
    except UnidentifiedImageError as err:
        empty = not (path.stat().st_size if data is None else data)
        why = "is an empty file (0 bytes)" if empty else f"is not one of {', '.join(FORMATS)}"
        raise ImageError(f"{where} {why}. Replace it, or remove the sample.") from err
    except Exception as err:  # Pillow has none of its own: it depends on the first bad byte
        raise ImageError(
            f"{where} cannot be read ({err}). Replace it, or remove the sample."
        ) from err


def _most_pixels() -> float:
    """Pillow's limit, which it only warns about until twice as many."""
    return math.inf if Image.MAX_IMAGE_PIXELS is None else Image.MAX_IMAGE_PIXELS
