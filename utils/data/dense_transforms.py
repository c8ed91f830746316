"""Joint transforms of dense prediction tasks (SPEC section 6): resize, pad, crop, colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from multimae.images.inputs import fit_size, pad
from multimae.images.pixels import Pixels, size_of
from multimae.images.views import View, largest_box
from multimae.nn.tokens import Size
from multimae.specs.modalities import Modality
from utils.data.transforms import JointTransform

INSIDE = "inside"
"""Key of the bool map ``(H, W)`` that is False where an image was padded."""

JITTER = (0.4, 0.4, 0.2, 0.1)
SCALES = (0.1, 2.0)
DEPTH_JITTER = (0.1255, 0.4, (0.5, 1.5), 0.2)
"""Brightness, contrast, saturation and hue of ``--color_augs``, with probability 0.5."""
DEPTH_GREY = 0.3


class SegEvalTransform(JointTransform):
    """Longest side to the input size, padded at bottom and right; emits :data:`INSIDE`."""

    def draw_view(self, size: Size) -> View:
        """The full image."""
        return View(size, 0, 0, *size)

    def sample_bytes(self) -> int:
        """Add the size of :data:`INSIDE`."""
        return super().sample_bytes() + math.prod(self.input_size)

    def __call__(self, pixels: Mapping[str, Pixels]) -> dict[str, Tensor]:
        """See the class."""
        return self._pad(self._resized(pixels, 1.0, False))

    def _resized(
        self, pixels: Mapping[str, Pixels], scale: float, flip: bool, vflip: bool = False
    ) -> dict[str, Tensor]:
        """Resize so that the longest side is ``scale`` times the input size, in full strides."""
        size = max(size_of(p) for p in pixels.values())
        unit = max(m.stride for m in self.modalities)
        h, w = fit_size(size, self.input_size, unit, scale)
        view = self.draw_view(size)._replace(flip=flip, vflip=vflip)
        return {
            m.name: self._cut(pixels[m.name], m, view, (h // m.stride, w // m.stride))
            for m in self.modalities
        }

    def _pad(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pad to the input size at bottom and right."""
        out = {}
        inside = torch.zeros(self.input_size, dtype=torch.bool)
        for m in self.modalities:
            h, w = images[m.name].shape[-2:]
            inside[: h * m.stride, : w * m.stride] = True
            out[m.name] = pad(images[m.name], m, self.input_size)
        return {**out, INSIDE: inside}


class SegTrainTransform(SegEvalTransform):
    """Flip, colour jitter on photos, scale jitter, padding, random crop.

    The scale jitter and the reduction of the longest side are one resize.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        input_size: int | Size,
        scales: tuple[float, float] = SCALES,
        hflip: float = 0.5,
        vflip: float = 0.0,
        jitter: float = 0.5,
    ) -> None:
        """See :class:`JointTransform`.

        Args:
            modalities: See the base class.
            input_size: Side, or ``(H, W)``, of the outputs.
            scales: Range of the scale jitter.
            hflip: Probability of a left-right flip.
            vflip: Probability of an upside-down flip.
            jitter: Probability of colour jitter.
        """
        super().__init__(modalities, input_size)
        self.scales, self.hflip, self.vflip = scales, hflip, vflip
        self.colour = v2.RandomApply([v2.ColorJitter(*JITTER)], p=jitter)

    def __call__(self, pixels: Mapping[str, Pixels]) -> dict[str, Tensor]:
        """See the class."""
        low, high = self.scales
        flip = bool(torch.rand(()) < self.hflip)
        scale = float(torch.empty(()).uniform_(low, high))
        vflip = _draw(self.vflip)
        images = self._crop(self._resized(pixels, scale, flip, vflip))
        for m in self.modalities:
            if m.is_photo:
                images[m.name] = self.colour(images[m.name])
        return self._pad(images)

    def _crop(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cut out a random window of the input size, aligned with the strides."""
        unit = max(m.stride for m in self.modalities)
        sizes = [
            (x.shape[-2] * m.stride, x.shape[-1] * m.stride)
            for m, x in ((m, images[m.name]) for m in self.modalities)
        ]
        offsets = [
            int(torch.randint(0, max(0, side - target) // unit + 1, ())) * unit
            for side, target in zip(sizes[0], self.input_size, strict=True)
        ]
        out = {}
        for m in self.modalities:
            (top, left), s = offsets, m.stride
            h, w = self.input_size
            rows = slice(top // s, (top + h) // s)
            out[m.name] = images[m.name][..., rows, left // s : (left + w) // s]
        return out


def _draw(probability: float) -> bool:
    """Draw with a probability; nothing is drawn for 0, which is as published."""
    return probability > 0 and bool(torch.rand(()) < probability)


class DepthTrainTransform(JointTransform):
    """Shortest side to the input size, flip, random crop; optional colour jitter and greyscale.

    The colours change as published for NYUv2 (SPEC section 6).
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        input_size: int | Size,
        hflip: float = 0.5,
        colour: bool = False,
        vflip: float = 0.0,
        scales: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """See :class:`JointTransform`.

        Args:
            modalities: See the base class.
            input_size: Side, or ``(H, W)``, of the outputs.
            hflip: Probability of a left-right flip.
            colour: With probability 0.5 jitter the colours of photos, then make them grey with
                probability 0.3.
            vflip: Probability of an upside-down flip.
            scales: Range of the factor, >= 1, on the size of images before the crop.
        """
        super().__init__(modalities, input_size)
        self.hflip, self.vflip, self.scales = hflip, vflip, scales
        self.colour = (
            v2.Compose(
                [
                    v2.RandomApply([v2.ColorJitter(*DEPTH_JITTER)], p=0.5),
                    v2.RandomGrayscale(DEPTH_GREY),
                ]
            )
            if colour
            else None
        )

    def draw_view(self, size: Size) -> View:
        """The largest view of the input's shape, at a random position along the longer side."""
        height, width = largest_box(size, self.input_size)
        if self.scales != (1.0, 1.0):
            scale = float(torch.empty(()).uniform_(*self.scales))
            height, width = (max(1, round(side / scale)) for side in (height, width))
        top = int(torch.randint(0, size[0] - height + 1, ()))
        left = int(torch.randint(0, size[1] - width + 1, ()))
        flip = bool(torch.rand(()) < self.hflip)
        return View(size, top, left, height, width, flip, _draw(self.vflip))

    def __call__(self, pixels: Mapping[str, Pixels]) -> dict[str, Tensor]:
        """See the class."""
        images = super().__call__(pixels)
        if self.colour is not None:
            for m in self.modalities:
                if m.is_photo:
                    images[m.name] = self.colour(images[m.name])
        return images
