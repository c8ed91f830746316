"""Stored pixels: their types, and checks that they are what a modality declares.

Values are never changed; what does not fit is an error. Images that Pillow can resample (8-bit grey
and RGB) are Pillow images, all others arrays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from multimae.specs.modalities import Modality

MAX_NORMALIZED = 20.0
"""Largest plausible absolute value of a model input."""

Array = npt.NDArray[Any]
Pixels = Image.Image | Array
"""Pillow image of mode L or RGB, or array ``(H, W)`` / ``(H, W, C)``."""
ImageLike = Image.Image | Array | str | os.PathLike[str]
"""One image as stored: Pillow image, array ``(H, W)`` or ``(H, W, C)`` of integers, or a file."""

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
WIDE_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
# 8-bit modes that Pillow turns into RGB (dropping alpha, resolving palettes).
_TO_RGB = frozenset({"1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr"})
_LOSSY = frozenset({"JPEG", "MPO", "AVIF"})


class ImageError(ValueError):
    """An image that does not fit its modality; the message names the file and a remedy."""


def storage_dtype(modality: Modality) -> np.dtype[Any]:
    """Smallest type that holds the modality's values: uint8, uint16 or float32."""
    if modality.storage == "float":
        return np.dtype(np.float32)
    top = modality.num_classes - 1 if modality.is_labels else int(modality.max_value)
    if modality.no_data is not None:
        top = max(top, int(modality.no_data))
    return np.dtype(np.uint8 if top < 256 else np.uint16)


def size_of(pixels: Pixels) -> tuple[int, int]:
    """``(H, W)``."""
    if isinstance(pixels, Image.Image):
        return pixels.height, pixels.width
    return int(pixels.shape[0]), int(pixels.shape[1])


def check_readable(modality: Modality) -> None:
    """Raise an ImageError if image files cannot hold the modality as declared."""
    if modality.storage == "float":
        return
    top = modality.num_classes - 1 if modality.is_labels else modality.max_value
    if max(top, modality.no_data or 0) > 65535:
        raise ImageError(
            f"modality '{modality.name}' cannot be read from folders: values up to {top:.0f} do "
            "not fit 16 bits. Store them in a larger unit, or as floats (storage: float)."
        )


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
            from multimae.images.pixel_errors import different_views

            raise different_views(sources, sizes, name, ref)


class Encoding(NamedTuple):
    """How a file stores its samples.

    Attributes:
        bits: 2 or 4, which Pillow scales to 0..255; 16 in colour, which it cuts to 8; else 0.
        lossy: Decoded values are not those that were encoded.
    """

    bits: int = 0
    lossy: bool = False


def encoding_of(image: Image.Image) -> Encoding:
    """Read the encoding of an image that Pillow has opened, but not loaded."""
    lossy = image.format in _LOSSY or image.info.get("compression") == "jpeg"
    tiles = getattr(image, "tile", None)
    raw_mode = tiles[0][3] if tiles else ""
    if isinstance(raw_mode, tuple):
        raw_mode = raw_mode[0] if raw_mode else ""
    match = re.fullmatch(r"(L|LA|RGB|RGBA|RGBX|RGBa|CMYK);(\d+)[A-Z]*", str(raw_mode))
    bits = int(match[2]) if match else 0
    grey = image.mode == "L"
    return Encoding(bits if bits in ((2, 4) if grey else (16,)) else 0, lossy)


def checked(
    image: Image.Image, source: object, modality: Modality, encoding: Encoding | None = None
) -> Pixels:
    """Check a decoded, upright image against its modality; ``source`` is for messages.

    Raises:
        ImageError: It does not hold what the modality declares.
    """
    encoding = encoding or Encoding()
    check_encoding(encoding, image.format or "JPEG", source, modality)
    bits = 1 if image.mode == "1" else encoding.bits
    if bits:
        image = _stored_levels(image, bits, f"{source}: modality '{modality.name}'", modality)
    if modality.is_labels:
        return _labels(image, source, modality)
    return _values(image, source, modality)


def exact_content(modality: Modality, bits: int = 8) -> str:
    """What a modality holds that a lossy file of ``bits`` per value would change; else empty."""
    if modality.is_labels:
        return "class ids"
    if modality.no_data is not None:
        return f"no_data: {modality.no_data:g}"
    if modality.storage == "float":
        return "floats"
    if bits <= 8 and storage_dtype(modality) != np.uint8:
        return "values of 16 bits"
    return ""


def check_encoding(
    encoding: Encoding, kind: str, source: object, modality: Modality, bits: int = 8
) -> None:
    """Raise an ImageError if decoding changes values that must be exact.

    Args:
        encoding: Of the file.
        kind: Name of its format or compression.
        source: The file, for messages.
        modality: What it should hold.
        bits: Bits of a value.
    """
    where = f"{source}: modality '{modality.name}'"
    exact = exact_content(modality, bits)
    if encoding.lossy and exact:
        raise ImageError(
            f"{where} holds {exact}, and the file is {kind}, whose compression changes values at "
            "edges. Store the original values as PNG, TIFF or .npy."
        )
    if encoding.bits == 16:
        raise ImageError(
            f"{where}: the file has 16 bits per channel, which would be cut to 8. Declare "
            "max_value (65535, or the largest value) and store it as 16-bit PNG or TIFF, or as "
            ".npy (H, W, C); or convert it to 8 bits."
        )


def _check_opaque(image: Image.Image, source: object, modality: Modality) -> None:
    """Refuse transparent pixels, whose stored colours need not be visible ones."""
    if image.mode in WIDE_MODES:
        key = image.info.get("transparency")
        count = 0 if key is None else int((np.asarray(image) == key).sum())
    elif image.has_transparency_data:
        count = int((np.asarray(image.convert("RGBA"))[..., 3] < 255).sum())
    else:
        count = 0
    if count:
        from multimae.images.pixel_errors import transparent

        raise transparent(source, modality, count)


def _stored_levels(image: Image.Image, bits: int, where: str, modality: Modality) -> Image.Image:
    """Undo Pillow's scaling of 1, 2 and 4 bits to 0..255 unless the modality has 8 bits."""
    top = 2**bits - 1
    if modality.is_labels or modality.storage == "float" or modality.max_value == top:
        return Image.fromarray(np.asarray(image.convert("L")) // (255 // top))
    if modality.max_value == 255 and modality.no_data is None:
        return image
    raise ImageError(
        f"{where} is declared with max_value: {modality.max_value:g}, and the file has {bits} bits "
        f"per pixel. Set max_value: {top} in the config's `modalities:` section, or store it with "
        "8 or 16 bits."
    )


def _labels(image: Image.Image, source: object, modality: Modality) -> Array:
    if modality.has_colour_labels:
        if image.mode in _TO_RGB:
            _check_opaque(image, source, modality)
            image = image.convert("RGB")
        return class_ids(np.asarray(image), source, modality)
    if image.mode not in {"1", "L", "P"} | WIDE_MODES:
        raise ImageError(
            f"{source}: modality '{modality.name}' holds class ids, which need a single-channel or "
            f"palette image; this one has mode {image.mode}. Map its colours to ids: label_map "
            "{'#rrggbb': id}."
        )
    return class_ids(np.asarray(image), source, modality)


def class_ids(ids: Array, source: object, modality: Modality) -> Array:
    """Apply the ``label_map``; check that the modality has every class id."""
    if modality.label_map:
        from multimae.specs.label_map import map_labels

        try:
            ids = map_labels(ids, modality.label_map)
        except ValueError as err:
            raise ImageError(f"{source}: modality '{modality.name}': {err}") from err
    known = ids if modality.no_data is None else ids[ids != modality.no_data]
    low, high = (int(known.min()), int(known.max())) if known.size else (0, 0)
    if low < 0 or high >= modality.num_classes:
        raise ImageError(
            f"{source}: class id {low if low < 0 else high} of modality '{modality.name}' is "
            f"outside 0..{modality.num_classes - 1} (num_classes: {modality.num_classes}). Set "
            "num_classes in the config's `modalities:` section, or remap the ids."
        )
    return ids.astype(storage_dtype(modality), copy=False)


def _values(image: Image.Image, source: object, modality: Modality) -> Pixels:
    want, dtype = _MODES.get(modality.num_channels), storage_dtype(modality)
    if image.mode != want or want in ("L", "RGB"):
        _check_opaque(image, source, modality)
    if modality.storage == "float" and image.mode in WIDE_MODES | {"L", "F", want}:
        from multimae.images.arrays import array_pixels

        return array_pixels(np.asarray(image), source, modality)
    if want is None or modality.num_channels > 1 and dtype != np.uint8:
        from multimae.images.pixel_errors import needs_array

        raise needs_array(source, modality)
    if want == "RGB" and image.mode in _TO_RGB or want == "L" and image.mode == "1":
        image = image.convert(want)
    wide = dtype == np.uint16 and image.mode in WIDE_MODES
    if image.mode != want and not wide:
        from multimae.images.pixel_errors import wrong_mode

        raise wrong_mode(image.mode, source, modality)
    if dtype == np.uint8 and want in ("L", "RGB") and modality.interpolation != "nearest":
        return image
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise ImageError(
            f"{source}: modality '{modality.name}' has values {values.min()}..{values.max()}, "
            "which do not fit 16 bits (0..65535). Store it in a larger unit."
        )
    return values.astype(dtype, copy=False)


def range_problems(m: Modality, low: float, high: float) -> Iterator[str]:
    """Report an implausible range of stored values above 0, from ``low`` to ``high``."""
    where = f"values are {low:.6g} to {high:.6g}"
    remedy = "Set max_value to the largest value, or normalization: computed (pre-training)."
    if m.storage == "integer" and m.max_value > 255 >= high:
        yield (
            f"{where}, and max_value is {m.max_value:g}: they are not depth in millimetres, and "
            "nearly constant to a model. Set max_value: 255 if files have 8 bits (true depth: set "
            "--depth_scale), or store 16 bits in a smaller unit."
        )
    elif m.normalization == "mean_std" and m.storage == "float":
        mean, std = m.mean[0], m.std[0]
        far = max(abs((v / m.max_value - mean) / std) for v in (low, high))
        if far > MAX_NORMALIZED:
            yield f"{where}, up to {far:.4g} after normalization. {remedy}"
