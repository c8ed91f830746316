"""Read uploaded images; reject invalid ones with an actionable message."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from multimae.images.pixels import ImageError, Pixels, check_same_view
from multimae.images.readers import FORMATS, SUFFIXES, read
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality

MAX_BYTES = 20_000_000
MAX_PIXELS = 40_000_000
_WIDE = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_ID_MODES = frozenset({"1", "L", "P"}) | _WIDE


def read_upload(path: Path, modality: Modality, patch_size: int) -> Pixels:
    """Read one uploaded file.

    Args:
        path: The file; messages show its name only.
        modality: Spec of the expected image.
        patch_size: The model's patch side in pixels.

    Returns:
        What :func:`multimae.images.readers.read` gives: 16-bit values and class ids as stored.

    Raises:
        UserError: The file is empty, too large, damaged, or does not fit the modality.
    """
    _check_bytes(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_header(image, path.name, modality, patch_size)
    except UnidentifiedImageError:
        pass  # an array or a TIFF that Pillow does not know, which the reader does
    except Image.DecompressionBombError as err:
        raise UserError(_too_many_pixels(path.name)) from err
    except (OSError, SyntaxError, ValueError) as err:
        raise UserError(_damaged(path.name)) from err
    try:
        return read(path, modality, modality.patch_size or patch_size)
    except ImageError as err:
        raise UserError(_explain(str(err), path, modality)) from err


def _explain(problem: str, path: Path, modality: Modality) -> str:
    """The message of a reader, for this page."""
    if "class id" in problem and "outside" in problem:
        return (
            f"{path.name} has class ids unknown to this model: ids are "
            f"0..{modality.num_classes - 1} ({modality.name}). Remap them, or save the map "
            "with its ids instead of colours."
        )
    if "is not one of" in problem or "no reader" in problem:
        formats = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        return f"{path.name} is not an image this page can read. Use {formats}."
    if "cannot be read" in problem or "cannot be decoded" in problem:
        return _damaged(path.name)
    return problem.replace(str(path), path.name).replace("\n", " ")


def check_one_view(pixels: Mapping[str, Pixels], names: Mapping[str, str]) -> None:
    """Reject images of different aspect ratios; resolutions may differ.

    Args:
        pixels: By modality.
        names: File names by modality.

    Raises:
        UserError: Their aspect ratios differ.
    """
    try:
        check_same_view(pixels, names)
    except ImageError as err:
        raise UserError(str(err)) from err


def _check_bytes(path: Path) -> None:
    size = os.stat(path).st_size
    if size == 0:
        raise UserError(f"{path.name} is empty. Choose another file.")
    if size > MAX_BYTES:
        raise UserError(
            f"{path.name} has {size / 1e6:.0f} MB, the limit is {MAX_BYTES / 1e6:.0f} MB. "
            "Compress or downscale it."
        )


def _check_header(image: Image.Image, name: str, modality: Modality, patch_size: int) -> None:
    """Check size and mode before decoding."""
    if image.width * image.height > MAX_PIXELS:
        raise UserError(_too_many_pixels(name))
    side = modality.patch_size or patch_size
    if min(image.size) < side // modality.stride:
        raise UserError(
            f"{name} is {image.width} x {image.height} pixels, smaller than one patch of "
            f"{modality.name} ({side // modality.stride} x {side // modality.stride}). "
            "Choose a larger image."
        )
    if modality.storage == "float":
        return
    grey = image.mode in _ID_MODES - {"P"}
    if modality.is_labels and image.mode not in _ID_MODES:
        raise UserError(
            f"{name} is a colour image (mode {image.mode}), but {modality.name} holds class ids: "
            "save it with one channel, or as a palette image."
        )
    if not modality.is_labels and modality.num_channels == 1 and not grey:
        raise UserError(
            f"{name} has mode {image.mode}, but {modality.name} has one channel of integers: save "
            "it as an 8- or 16-bit greyscale PNG."
        )
    if not modality.is_labels and modality.num_channels == 3 and image.mode in _WIDE | {"F"}:
        raise UserError(
            f"{name} is a 16-bit or float greyscale image (mode {image.mode}), but "
            f"{modality.name} has 8-bit colours. Is it meant for another modality?"
        )


def _too_many_pixels(name: str) -> str:
    return f"{name} has too many pixels: the limit is {MAX_PIXELS / 1e6:.0f} million. Downscale it."


def _damaged(name: str) -> str:
    return f"{name} is damaged or truncated. Save it again."
