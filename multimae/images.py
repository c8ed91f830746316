"""Stored images exactly as they are: no value is changed, and what does not fit is an error.

Pixels stay in Pillow where Pillow will resample them (8-bit grey and RGB) and are arrays otherwise.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from multimae.modalities import Modality

Array = npt.NDArray[Any]
Pixels = Image.Image | Array
"""Pillow image of mode L or RGB, or array ``(H, W)`` / ``(H, W, C)``."""
ImageLike = Image.Image | Array | str | os.PathLike[str]
"""One image as stored: Pillow image, array ``(H, W)`` or ``(H, W, C)`` of integers, or a file."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_WIDE = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
# 8-bit modes that Pillow turns into RGB (dropping alpha, resolving palettes).
_TO_RGB = frozenset({"1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr"})


class ImageError(ValueError):
    """An image that does not hold what its modality declares; says which, why and what to do."""


def storage_dtype(modality: Modality) -> np.dtype[Any]:
    """Smallest unsigned integer that holds the modality's values: uint8 or uint16."""
    top = modality.num_classes - 1 if modality.is_labels else int(modality.max_value)
    return np.dtype(np.uint8 if top < 256 else np.uint16)


def size_of(pixels: Pixels) -> tuple[int, int]:
    """``(H, W)``."""
    if isinstance(pixels, Image.Image):
        return pixels.height, pixels.width
    return int(pixels.shape[0]), int(pixels.shape[1])


def check_readable(modality: Modality) -> None:
    """Raise an ImageError if image files cannot hold the modality as declared."""
    top = modality.num_classes - 1 if modality.is_labels else modality.max_value
    problem = None
    if top > 65535:
        problem = f"values up to {top:.0f} do not fit 16-bit image files"
    elif not modality.is_labels and modality.num_channels not in _MODES:
        problem = f"image files have 1 to 4 channels, not num_channels: {modality.num_channels}"
    elif not modality.is_labels and modality.num_channels > 1 and top > 255:
        problem = "16-bit files are read with one channel only; store 8 bits and set max_value: 255"
    if problem:
        raise ImageError(f"modality '{modality.name}' cannot be read from folders: {problem}.")


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
        return _checked(upright, "image", modality)
    return _array(np.asarray(image), modality)


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
            return _class_ids(image, source, modality)
        dtype = storage_dtype(modality)
        channels = 1 if image.ndim == 2 else image.shape[2]
        wanted = not modality.is_labels and channels == modality.num_channels
        if wanted and np.can_cast(image.dtype, dtype):
            return image.astype(dtype, copy=False)
        image = Image.fromarray(image)
    return _checked(image, source, modality)


def check_same_view(
    pixels: Mapping[str, Pixels], sources: Mapping[str, object], rounding: float = 1.0
) -> None:
    """Raise an ImageError unless all modalities of a sample show the same field of view.

    They may be stored at different resolutions; ``rounding`` is the deviation in stored pixels that
    such a reduction may have caused.
    """
    sizes = {name: size_of(p) for name, p in pixels.items()}
    ref = max(sizes, key=lambda name: sizes[name])
    ref_h, ref_w = sizes[ref]
    for name, (h, w) in sizes.items():
        if abs(h * ref_w / ref_h - w) > rounding and abs(w * ref_h / ref_w - h) > rounding:
            raise ImageError(
                f"{sources[name]}: modality '{name}' is {h} x {w} (H x W) but '{ref}' of the same "
                f"sample ({sources[ref]}) is {ref_h} x {ref_w}: the aspect ratios differ, so they "
                "cannot show the same view. Check the files and an EXIF rotation of one of them."
            )


def _decode(path: Path, modality: Modality, data: bytes | None) -> Image.Image:
    """Open, decode and turn upright."""
    where = f"{path}: modality '{modality.name}'"
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=_FORMATS) as image:
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
        why = "is an empty file (0 bytes)" if empty else f"is not one of {', '.join(_FORMATS)}"
        raise ImageError(f"{where} {why}. Replace it, or remove the sample.") from err
    except Exception as err:  # Pillow has none of its own: it depends on the first bad byte
        raise ImageError(
            f"{where} cannot be read ({err}). Replace it, or remove the sample."
        ) from err


def _most_pixels() -> float:
    """Pillow's limit, which it only warns about until twice as many."""
    return math.inf if Image.MAX_IMAGE_PIXELS is None else Image.MAX_IMAGE_PIXELS


def _checked(image: Image.Image, source: object, modality: Modality) -> Pixels:
    """Pixels of a decoded, upright image."""
    if modality.is_labels:
        return _labels(image, source, modality)
    return _values(image, source, modality)


def _array(values: Array, modality: Modality) -> Pixels:
    """Pixels of an array of stored values."""
    where = f"array: modality '{modality.name}'"
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    channels = 1 if values.ndim == 2 else values.shape[-1]
    want = 1 if modality.is_labels else modality.num_channels
    if values.ndim not in (2, 3) or channels != want:
        shape = "(H, W)" if want == 1 else f"(H, W, {want})"
        raise ImageError(f"{where} is {shape}, got {values.shape}")
    if not np.issubdtype(values.dtype, np.integer):
        raise ImageError(
            f"{where} holds the values of its files, integers up to "
            f"{modality.num_classes - 1 if modality.is_labels else int(modality.max_value)}; got "
            f"{values.dtype}. Convert it (depth in metres: x * 1000, rounded, as uint16)."
        )
    if values.size == 0:
        raise ImageError(f"{where} is empty: {values.shape}")
    if modality.is_labels:
        return _class_ids(values, "array", modality)
    dtype = storage_dtype(modality)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > np.iinfo(dtype).max:
        raise ImageError(f"{where} has values {low}..{high}, outside 0..{np.iinfo(dtype).max}")
    values = np.ascontiguousarray(values, dtype=dtype)
    if dtype == np.uint8 and channels in (1, 3) and modality.interpolation != "nearest":
        return Image.fromarray(values)
    return values


def _labels(image: Image.Image, source: object, modality: Modality) -> Array:
    if image.mode not in {"1", "L", "P"} | _WIDE:
        raise ImageError(
            f"{source}: modality '{modality.name}' holds class ids, which need a single-channel or "
            f"palette image; this one has mode {image.mode}. Map its colours to ids first."
        )
    return _class_ids(np.asarray(image), source, modality)


def _class_ids(ids: Array, source: object, modality: Modality) -> Array:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= modality.num_classes:
        raise ImageError(
            f"{source}: class id {low if low < 0 else high} of modality '{modality.name}' is "
            f"outside 0..{modality.num_classes - 1} (num_classes: {modality.num_classes}). Set "
            "num_classes in the config's `modalities:` section, or remap the ids."
        )
    return ids.astype(storage_dtype(modality), copy=False)


def _values(image: Image.Image, source: object, modality: Modality) -> Pixels:
    want, dtype = _MODES[modality.num_channels], storage_dtype(modality)
    if want == "RGB" and image.mode in _TO_RGB or want == "L" and image.mode == "1":
        image = image.convert(want)
    wide = dtype == np.uint16 and image.mode in _WIDE
    if image.mode != want and not wide:
        raise ImageError(_wrong_mode(image.mode, source, modality))
    if dtype == np.uint8 and want in ("L", "RGB") and modality.interpolation != "nearest":
        return image
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise ImageError(
            f"{source}: modality '{modality.name}' has values {values.min()}..{values.max()}, "
            "which do not fit 16 bits (0..65535). Store it in a larger unit."
        )
    return values.astype(dtype, copy=False)


def _wrong_mode(mode: str, source: object, modality: Modality) -> str:
    if mode in _WIDE and modality.num_channels == 1:
        remedy = "It is a 16-bit file: set max_value: 65535 in the config's `modalities:` section."
    elif mode == "F":
        remedy = "It holds floats: store 16-bit integers (depth in millimetres, for example)."
    else:
        remedy = "Set num_channels in the config's `modalities:` section, or convert the file."
    return (
        f"{source}: modality '{modality.name}' is declared with num_channels: "
        f"{modality.num_channels} and max_value: {modality.max_value:g}, which an image of mode "
        f"{mode} does not have. {remedy}"
    )
