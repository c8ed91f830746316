"""One geometric transform for all modalities of a sample.

A view (crop box and flip) is drawn once, at the resolution of the largest modality, and then cut
out of every modality at the resolution of its files (:mod:`multimae.images.views`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from multimae.images.folders import stored_modalities
from multimae.images.pixels import Pixels, size_of, storage_dtype
from multimae.images.views import UndecodedImage, View, centred_view, cut
from multimae.nn.tokens import Size, as_size
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from utils.data.batches import BadSample, Batch, Sample, collate

_MAX_TRIES = 10  # to draw a box inside the image


class JointTransform(ABC):
    """Cuts the same view out of every modality.

    ``transform(pixels)`` maps stored pixels by modality name to tensors in storage dtype: images
    ``(C, h, w)``, labels ``(h, w)``, where ``(h, w)`` is the input size over the modality's stride.
    """

    def __init__(self, modalities: Sequence[Modality], input_size: int | Size) -> None:
        """Fix the output sizes.

        Args:
            modalities: Modalities; those with a ``source`` have no images.
            input_size: Side, or ``(H, W)``, of full-resolution outputs.

        Raises:
            UserError: ``input_size`` is not a multiple of a modality's stride.
        """
        h, w = as_size(input_size)
        self.input_size: Size = (h, w)
        self.modalities = stored_modalities(modalities)
        for m in self.modalities:
            if h % m.stride or w % m.stride:
                raise UserError(
                    f"input size {h} x {w} is not a multiple of the stride {m.stride} of modality "
                    f"'{m.name}': choose another --input_size or stride."
                )

    @abstractmethod
    def draw_view(self, size: Size) -> View:
        """View of a sample whose largest modality has this size."""

    def __call__(self, pixels: Mapping[str, Pixels]) -> dict[str, Tensor]:
        """See the class."""
        view = self.draw_view(max(size_of(p) for p in pixels.values()))
        return {
            m.name: self._cut(pixels[m.name], m, view) if m.name in pixels else self._placeholder(m)
            for m in self.modalities
        }

    def collate(self, samples: Sequence[Sample | BadSample]) -> Batch:
        """Stack the samples of a batch."""
        return collate(samples)

    def sample_bytes(self) -> int:
        """Size of the tensors of a sample in bytes."""
        return sum(self._placeholder(m).nbytes for m in self.modalities)

    def _placeholder(self, m: Modality) -> Tensor:
        """Tensor of a modality that a sample lacks."""
        h, w = (side // m.stride for side in self.input_size)
        value = 0 if m.no_data is None else m.no_data
        shape = (h, w) if m.is_labels else (m.num_channels, h, w)
        return torch.from_numpy(np.full(shape, value, storage_dtype(m)))

    def _cut(self, pixels: Pixels, m: Modality, view: View, out: Size | None = None) -> Tensor:
        out = out or (self.input_size[0] // m.stride, self.input_size[1] // m.stride)
        if isinstance(pixels, UndecodedImage):
            return pixels.cut(m, view, out)
        return cut(pixels, m, view, out)


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
            modalities: See the base class.
            input_size: Side, or ``(H, W)``, of full-resolution outputs.
            scale: Range of the crop's share of the image area.
            ratio: Range of the crop's width / height.
            hflip: Probability of mirroring.
        """
        super().__init__(modalities, input_size)
        self.scale, self.ratio, self.hflip = scale, ratio, hflip
        self._log_ratio = torch.log(torch.tensor(ratio)).tolist()

    def draw_view(self, size: Size) -> View:
        """Random view."""
        top, left, h, w = self._box(size)
        return View(size, top, left, h, w, bool(torch.rand(()) < self.hflip))

    def _box(self, size: Size) -> tuple[int, int, int, int]:
        """Top, left, height, width; the same draws as torchvision's RandomResizedCrop, faster."""
        height, width = size
        drawn = torch.empty(1)
        for _ in range(_MAX_TRIES):
            area = height * width * drawn.uniform_(*self.scale).item()
            aspect = drawn.uniform_(*self._log_ratio).exp_().item()
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(0, height - h + 1, (1,)).item())
                left = int(torch.randint(0, width - w + 1, (1,)).item())
                return top, left, h, w
        lowest, highest = (height * ratio for ratio in self.ratio)
        h, w = height, min(width, round(highest))
        if width < lowest:
            h, w = round(width / self.ratio[0]), width
        return (height - h) // 2, (width - w) // 2, h, w


class EvalTransform(JointTransform):
    """The largest centred view of the input's shape: shortest side to input size, centre crop."""

    def draw_view(self, size: Size) -> View:
        """Centred view."""
        return centred_view(size, self.input_size)
