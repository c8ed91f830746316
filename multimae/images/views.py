"""Views: one crop box for all modalities of a sample, cut at the resolution of each.

Interpolated images go through Pillow (crop, then resize with antialiasing). ``nearest`` modalities
copy the stored pixel under each output pixel's centre, found in exact integer arithmetic.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from multimae.images.pixels import Array, Pixels, size_of
from multimae.nn.tokens import Size
from multimae.specs.modalities import Modality

_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class View(NamedTuple):
    """A crop box in the pixels of an image of size ``image_size``, and whether to mirror it.

    ``flip`` swaps left and right, ``vflip`` top and bottom.
    """

    image_size: Size
    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    vflip: bool = False


class UndecodedImage(ABC):
    """An image that is decoded when a view is cut out of it."""

    shape: tuple[int, ...]

    @abstractmethod
    def cut(self, modality: Modality, view: View, out: Size) -> Tensor:
        """Cut a view as :func:`cut` does."""


def centred_view(size: Size, shape: Size, crop_pct: float = 1.0) -> View:
    """The largest centred view with the proportions of ``shape``.

    Args:
        size: ``(H, W)`` of the image.
        shape: ``(h, w)``: only its proportions matter.
        crop_pct: Share of that view's sides to keep, in (0, 1].
    """
    height, width = largest_box(size, shape)
    height, width = (max(1, round(side * crop_pct)) for side in (height, width))
    return View(size, (size[0] - height) // 2, (size[1] - width) // 2, height, width)


def largest_box(size: Size, shape: Size) -> Size:
    """The largest ``(height, width)`` inside ``size`` with the proportions of ``shape``."""
    (h, w), (out_h, out_w) = size, shape
    return min(h, max(1, round(w * out_h / out_w))), min(w, max(1, round(h * out_w / out_h)))


def cut(pixels: Pixels, modality: Modality, view: View, out: Size) -> Tensor:
    """A view of one modality as a tensor of stored values.

    Args:
        pixels: The full image.
        modality: Its modality.
        view: Box to cut out, and whether to mirror it.
        out: ``(h, w)`` of the result.

    Returns:
        Images ``(C, h, w)``, labels ``(h, w)``, in the storage dtype.
    """
    if modality.interpolation == "nearest":
        array = nearest(np.asarray(pixels), view, out, flip=view.flip)
    else:
        array = interpolate(pixels, view, out, _RESAMPLE[modality.interpolation])
        if view.flip:
            array = array[:, ::-1]
    if view.vflip:
        array = array[::-1]
    if not modality.is_labels:
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    for flipped, negated in (
        (view.flip, modality.hflip_negate),
        (view.vflip, modality.vflip_negate),
    ):
        if flipped and negated:
            array[list(negated)] = _mirrored(array[list(negated)], modality)
    return torch.from_numpy(array)


def _mirrored(values: Array, modality: Modality) -> Array:
    """Integers mirrored about the middle of their range, floats about 0."""
    if modality.storage == "float":
        mirrored: Array = -values
    else:
        top = int(modality.max_value)
        mirrored = top - np.minimum(values, top)
    no_data = modality.no_data
    return mirrored if no_data is None else np.where(values == no_data, values, mirrored)


def nearest(array: Array, view: View, out: Size, *, flip: bool = False) -> Array:
    """Nearest-neighbour resize of a view.

    Args:
        array: ``(H, W)`` or ``(H, W, C)``, of any resolution.
        view: Box to cut out.
        out: Size ``(h, w)`` of the result.
        flip: Mirror the result.

    Returns:
        ``(h, w)`` or ``(h, w, C)``: the stored pixels under the output pixels' centres.
    """
    rows = _nearest_indices(view.top, view.height, out[0], array.shape[0], view.image_size[0])
    columns = _nearest_indices(view.left, view.width, out[1], array.shape[1], view.image_size[1])
    if flip:
        columns = columns[::-1]
    first, last = int(rows[0]), int(rows[-1])
    if last - first < out[0]:  # few rows: picking columns first copies less
        return array[first : last + 1].take(columns, axis=1).take(rows - first, axis=0)
    return array.take(rows, axis=0).take(columns, axis=1)


def _nearest_indices(
    start: int, length: int, out: int, stored: int, full: int
) -> npt.NDArray[np.int64]:
    """floor((start + (i + 1/2) * length / out) * stored / full) for i in 0..out-1, exactly."""
    if stored == full:
        return start + _centres(length, out)
    i = np.arange(out, dtype=np.int64)
    return (2 * out * start + (2 * i + 1) * length) * stored // (2 * out * full)


@lru_cache(maxsize=2048)
def _centres(length: int, out: int) -> npt.NDArray[np.int64]:
    """floor((i + 1/2) * length / out) for i in 0..out-1, exactly; read-only, as it is cached."""
    i = np.arange(out, dtype=np.int64)
    return (2 * i + 1) * length // (2 * out)


def interpolate(pixels: Pixels, view: View, out: Size, resample: Image.Resampling) -> Array:
    """Antialiased resize of a view without its flip, as Pillow crops and resizes.

    Args:
        pixels: Pillow image of mode L or RGB, or array ``(H, W)`` / ``(H, W, C)``.
        view: Box to cut out; a box that falls between stored pixels keeps its exact position.
        out: Size ``(h, w)`` of the result.
        resample: Pillow filter.

    Returns:
        ``(h, w)`` or ``(h, w, C)`` in the dtype of ``pixels``; integers are rounded and clipped.
    """
    if isinstance(pixels, Image.Image) or _is_pillow_like(pixels):
        return np.asarray(_crop_resize(pixels, view, out, resample))
    # Pillow cannot resample 16 bits, and weights colours by alpha: use floats, channel by channel.
    bands = [pixels] if pixels.ndim == 2 else list(np.moveaxis(pixels, -1, 0))
    resized = [np.asarray(_crop_resize(b.astype(np.float32), view, out, resample)) for b in bands]
    array: Array = resized[0] if pixels.ndim == 2 else np.stack(resized, axis=-1)
    if np.issubdtype(pixels.dtype, np.floating):
        return array
    top = np.iinfo(pixels.dtype).max
    return np.clip(np.rint(array), 0, top).astype(pixels.dtype)


def _is_pillow_like(array: Array) -> bool:
    """Whether Pillow can resample the values directly: 8-bit grey or RGB."""
    return array.dtype == np.uint8 and (array.ndim == 2 or array.shape[2] == 3)


def _crop_resize(image: Pixels, view: View, out: Size, resample: Image.Resampling) -> Image.Image:
    """Resize the box as if the pixels beyond it (rounded outwards) did not exist."""
    outer, box = stored_box(size_of(image), view)
    crop = (
        image.crop(outer)
        if isinstance(image, Image.Image)
        else Image.fromarray(image[outer[1] : outer[3], outer[0] : outer[2]])
    )
    return crop.resize((out[1], out[0]), resample, box)


def stored_box(
    size: Size, view: View
) -> tuple[tuple[int, int, int, int], tuple[float, float, float, float]]:
    """``(left, top, right, bottom)`` of the stored pixels in a view, and its exact box in them."""
    (h, w), (full_h, full_w) = size, view.image_size
    left, right = view.left * w / full_w, (view.left + view.width) * w / full_w
    top, bottom = view.top * h / full_h, (view.top + view.height) * h / full_h
    x, y = int(left), int(top)
    outer = (x, y, math.ceil(right), math.ceil(bottom))
    return outer, (left - x, top - y, right - x, bottom - y)
