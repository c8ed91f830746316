"""Errors about pixels that are not what a modality declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from multimae.images.pixels import WIDE_MODES, Array, ImageError
from multimae.specs.modalities import Modality


def different_views(
    sources: Mapping[str, object], sizes: Mapping[str, tuple[int, int]], name: str, ref: str
) -> ImageError:
    """Two modalities of a sample differ in their aspect ratio."""
    (h, w), (ref_h, ref_w) = sizes[name], sizes[ref]
    return ImageError(
        f"{sources[name]}: modality '{name}' is {h} x {w} (H x W) but '{ref}' of the same "
        f"sample ({sources[ref]}) is {ref_h} x {ref_w}: the aspect ratios differ, so they "
        "cannot show the same view. Check the files and an EXIF rotation of one of them."
    )


def not_integers(dtype: np.dtype[Any], source: object, modality: Modality) -> ImageError:
    """An array of floats for a modality of integers."""
    top = modality.num_classes - 1 if modality.is_labels else int(modality.max_value)
    return ImageError(
        f"{source}: modality '{modality.name}' holds the values of its files, integers up to "
        f"{top}; got {dtype}. Convert it (metres to millimetres: x * 1000, rounded, as uint16), or "
        "declare storage: float."
    )


def not_finite(values: Array, source: object, modality: Modality) -> ImageError:
    """Values that are NaN or infinite, and not ``no_data``."""
    kinds = ["NaN"] * bool(np.isnan(values).any())
    kinds += ["infinite"] * bool(np.isinf(values).any())
    declared = (
        "declare these pixels empty: no_data: .nan in the config's `modalities:` section"
        if modality.no_data is None
        else f"store them as no_data, {modality.no_data:g}"
    )
    return ImageError(
        f"{source}: modality '{modality.name}' has {values.size} values that are not finite "
        f"({' and '.join(kinds)}). Replace them, or {declared}."
    )


def transparent(source: object, modality: Modality, count: int) -> ImageError:
    """Some pixels are not opaque, and the modality has no alpha."""
    channels = 1 if modality.is_labels else modality.num_channels
    return ImageError(
        f"{source}: modality '{modality.name}': {count} pixels are not opaque, and num_channels: "
        f"{channels} has no alpha. Flatten the image onto a background, or declare alpha as a "
        "channel."
    )


def needs_array(source: object, modality: Modality) -> ImageError:
    """Pictures cannot hold as many channels of as many bits."""
    return ImageError(
        f"{source}: modality '{modality.name}' is declared with num_channels: "
        f"{modality.num_channels} and max_value: {modality.max_value:g}, but a picture file has 1 "
        "to 4 channels of 8 bits, or one of 16. Store it as .npy, (H, W, "
        f"{modality.num_channels}), or as TIFF with one page per channel."
    )


def wrong_mode(mode: str, source: object, modality: Modality) -> ImageError:
    """The channels or bits of a picture are not those of the modality."""
    if mode in WIDE_MODES and modality.num_channels == 1:
        remedy = "It is a 16-bit file: set max_value: 65535 in the config's `modalities:` section."
    elif mode == "F":
        remedy = (
            "It holds floats: declare storage: float, or store 16-bit integers (depth in "
            "millimetres, for example)."
        )
    else:
        remedy = "Set num_channels in the config's `modalities:` section, or convert the file."
    return ImageError(
        f"{source}: modality '{modality.name}' is declared with num_channels: "
        f"{modality.num_channels} and max_value: {modality.max_value:g}, which an image of mode "
        f"{mode} does not have. {remedy}"
    )
