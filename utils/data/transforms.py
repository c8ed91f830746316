"""One geometric transform for all modalities of a sample.

A view (crop box and flip) is chosen once, at the resolution of the largest modality, and then cut
out of every modality at its own resolution. Interpolated images go through Pillow (crop, then
resize with antialiasing). ``nearest`` modalities take the pixel whose area holds the output pixel's
centre, in exact integer arithmetic, so that values and class ids are only ever copied.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from multimae.modalities import Modality
from multimae.tokens import Size, as_size
from utils.data.folders import readable
from utils.data.reading import Array, Pixels, size_of
from utils.errors import UserError

_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class View(NamedTuple):
    """A crop box in the pixels of an image of size ``of``, and whether to mirror it."""

    of: Size
    top: int
    left: int
    height: int
    width: int
    flip: bool = False


class JointTransform(ABC):
    """Cuts the same view out of every modality.

    ``transform(pixels)`` maps stored pixels by modality name to tensors in storage dtype: images
    ``(C, h, w)``, labels ``(h, w)``, where ``(h, w)`` is the input size over the modality's stride.
    """

    def __init__(self, modalities: Sequence[Modality], input_size: int | Size) -> None:
        """Fix the output sizes.

        Args:
            modalities: Rows of the table; those with a ``source`` are passed over.
            input_size: Side, or ``(H, W)``, of full-resolution outputs.

        Raises:
            UserError: ``input_size`` is not a multiple of a modality's stride.
        """
        h, w = as_size(input_size)
        self.input_size: Size = (h, w)
        self.modalities = readable(modalities)
        for m in self.modalities:
            if h % m.stride or w % m.stride:
                raise UserError(
                    f"input size {h} x {w} is not a multiple of the stride {m.stride} of modality "
                    f"'{m.name}': choose another --input_size or stride."
                )

    @abstractmethod
    def choose(self, size: Size) -> View:
        """View of a sample whose largest modality has this size."""

    def __call__(self, pixels: Mapping[str, Pixels]) -> dict[str, Tensor]:
        """See the class."""
        view = self.choose(max(size_of(p) for p in pixels.values()))
        return {m.name: self._cut(pixels[m.name], m, view) for m in self.modalities}

    def _cut(self, pixels: Pixels, m: Modality, view: View, out: Size | None = None) -> Tensor:
        out = out or (self.input_size[0] // m.stride, self.input_size[1] // m.stride)
        if m.interpolation == "nearest":
            array = nearest(np.asarray(pixels), view, out)
        else:
            array = interpolate(pixels, view, out, _RESAMPLE[m.interpolation])
        if not m.is_labels:
            array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if view.flip:
            array = array[..., ::-1]
        array = np.array(array, order="C")
        if view.flip and m.hflip_negate:
            channels = list(m.hflip_negate)
            top = int(m.max_value)
            array[channels] = top - np.minimum(array[channels], top)
        return torch.from_numpy(array)


class TrainTransform(JointTransform):
    """Random resized crop and horizontal flip, drawn from torch's global CPU generator."""

    def __init__(
        self,
        modalities: Sequence[Modality],
        input_size: int | Size,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
    ) -> None:
        """See :class:`JointTransform`.

        Args:
            modalities: Rows of the table.
            input_size: Side, or ``(H, W)``, of full-resolution outputs.
            scale: Range of the crop's share of the image area.
            ratio: Range of the crop's width / height.
            hflip: Probability of mirroring.
        """
        super().__init__(modalities, input_size)
        self.scale, self.ratio, self.hflip = list(scale), list(ratio), hflip

    def choose(self, size: Size) -> View:
        """Random view."""
        shape_only = torch.empty(0, *size)
        top, left, h, w = v2.RandomResizedCrop.get_params(shape_only, self.scale, self.ratio)
        return View(size, int(top), int(left), int(h), int(w), bool(torch.rand(()) < self.hflip))


class EvalTransform(JointTransform):
    """The largest centred view of the input's shape: shortest side to input size, centre crop."""

    def choose(self, size: Size) -> View:
        """Centred view."""
        (h, w), (out_h, out_w) = size, self.input_size
        height = min(h, max(1, round(w * out_h / out_w)))
        width = min(w, max(1, round(h * out_w / out_h)))
        return View(size, (h - height) // 2, (w - width) // 2, height, width)


def nearest(array: Array, view: View, out: Size) -> Array:
    """Nearest-neighbour resize of a view (flip aside).

    Args:
        array: ``(H, W)`` or ``(H, W, C)``, of any resolution.
        view: Box to cut out.
        out: Size ``(h, w)`` of the result.

    Returns:
        ``(h, w)`` or ``(h, w, C)``: the stored pixels under the output pixels' centres.
    """
    rows = _nearest_indices(view.top, view.height, out[0], array.shape[0], view.of[0])
    columns = _nearest_indices(view.left, view.width, out[1], array.shape[1], view.of[1])
    return array.take(rows, axis=0).take(columns, axis=1)


def _nearest_indices(
    start: int, length: int, out: int, stored: int, of: int
) -> npt.NDArray[np.int64]:
    """floor((start + (i + 1/2) * length / out) * stored / of) for i in 0..out-1, exactly."""
    i = np.arange(out, dtype=np.int64)
    return (2 * out * start + (2 * i + 1) * length) * stored // (2 * out * of)


def interpolate(pixels: Pixels, view: View, out: Size, resample: Image.Resampling) -> Array:
    """Antialiased resize of a view (flip aside), as Pillow crops and resizes.

    Args:
        pixels: Pillow image of mode L or RGB, or array ``(H, W)`` / ``(H, W, C)``.
        view: Box to cut out; a box that falls between stored pixels keeps its exact position.
        out: Size ``(h, w)`` of the result.
        resample: Pillow filter.

    Returns:
        ``(h, w)`` or ``(h, w, C)`` in the dtype of ``pixels``, rounded and clipped to its range.
    """
    if isinstance(pixels, Image.Image):
        return np.asarray(_crop_resize(pixels, view, out, resample))
    # Pillow does not resample 16 bits, and weighs colours by alpha: floats, channel by channel.
    bands = [pixels] if pixels.ndim == 2 else list(np.moveaxis(pixels, -1, 0))
    resized = [
        np.asarray(_crop_resize(Image.fromarray(b.astype(np.float32)), view, out, resample))
        for b in bands
    ]
    array: Array = resized[0] if pixels.ndim == 2 else np.stack(resized, axis=-1)
    top = np.iinfo(pixels.dtype).max
    return np.clip(np.rint(array), 0, top).astype(pixels.dtype)


def _crop_resize(
    image: Image.Image, view: View, out: Size, resample: Image.Resampling
) -> Image.Image:
    """Resize the box as if the pixels beyond it (rounded outwards) did not exist."""
    (h, w), (of_h, of_w) = (image.height, image.width), view.of
    left, right = view.left * w / of_w, (view.left + view.width) * w / of_w
    top, bottom = view.top * h / of_h, (view.top + view.height) * h / of_h
    x, y = int(left), int(top)
    crop = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
    return crop.resize((out[1], out[0]), resample, (left - x, top - y, right - x, bottom - y))
