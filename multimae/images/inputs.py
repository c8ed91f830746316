"""From images as they are stored to a batch of model inputs, as a model's description says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.images.pixels import ImageLike, Pixels, check_same_view, size_of
from multimae.images.preprocess import prepare, prepare_padded
from multimae.images.readers import to_pixels
from multimae.images.views import View, centred_view, cover_size, cut, fit_size
from multimae.nn.tokens import Size
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec

Images = Mapping[str, ImageLike | Sequence[ImageLike] | Tensor]
"""Images by modality: one each, lists of one length, or tensors that are model inputs already."""

PHOTO_PADDING, PADDING = 128, 254
"""Stored values of padding in photos, and in other images (SPEC section 6)."""


@dataclass(frozen=True)
class Inputs:
    """A batch of model inputs and where it comes from.

    Attributes:
        x: Modality -> batch in model space.
        raw: Modality -> batch of stored values at the model's resolution; empty if tensors were
            given.
        views: Per sample, the box of the image that the model sees; empty if tensors were given.
        inside: ``(h, w)`` of each sample that are no padding, at full resolution.
    """

    x: dict[str, Tensor]
    raw: dict[str, Tensor]
    views: tuple[View, ...]
    inside: tuple[Size, ...]

    def __len__(self) -> int:
        """Number of samples."""
        return len(next(iter(self.x.values())))


def load_inputs(
    images: Images | ImageLike | Tensor, spec: ModelSpec, device: torch.device | str = "cpu"
) -> Inputs:
    """A batch for the model.

    Args:
        images: See :data:`Images`. What is no mapping is taken for the model's first input.
        spec: The model's description.
        device: Where it goes.

    Raises:
        ValueError: No image, unknown modalities, lists of unequal length, images that do not fit
            their modality or each other, or both images and tensors.
    """
    if not isinstance(images, Mapping):
        images = {spec.inputs[0].name: images}
    rows = _rows(images, spec)
    tensors = [m for m in rows if isinstance(images[m.name], Tensor)]
    if tensors:
        if len(tensors) < len(rows):
            raise ValueError("give all modalities as images, or all as model inputs (tensors)")
        x = {m.name: cast(Tensor, images[m.name]).to(device) for m in rows}
        return Inputs(x, {}, (), ())
    listed = {m.name: _as_list(images[m.name]) for m in rows}
    counts = {name: len(values) for name, values in listed.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(f"modalities need lists of one length, at least one: got {counts}")
    samples = [
        _frame({m.name: to_pixels(listed[m.name][i], m) for m in rows}, rows, spec)
        for i in range(len(listed[rows[0].name]))
    ]
    sizes = {tuple(next(iter(s.images.values())).shape[-2:]) for s in samples}
    if len(sizes) > 1:
        raise ValueError(f"images of one batch come to unlike sizes {sizes}: give them one by one")
    raw = {m.name: torch.stack([s.images[m.name] for s in samples]).to(device) for m in rows}
    if spec.resize_mode == "pad":
        inside = torch.stack([s.mask for s in samples]).to(device)
        x = prepare_padded(raw, rows, inside)
    else:
        x = prepare(raw, rows)
    return Inputs(x, raw, tuple(s.view for s in samples), tuple(s.inside for s in samples))


@dataclass(frozen=True)
class _Framed:
    """One sample at the model's size."""

    images: dict[str, Tensor]
    view: View
    inside: Size
    mask: Tensor


def _frame(pixels: Mapping[str, Pixels], rows: Sequence[Modality], spec: ModelSpec) -> _Framed:
    """Bring a sample to the model's size."""
    check_same_view(pixels, {name: "images" for name in pixels})
    size = max(size_of(p) for p in pixels.values())
    box = (spec.image_size, spec.image_size)
    view, out = View(size, 0, 0, *size), box
    if spec.resize_mode == "crop":
        view = centred_view(size, box, spec.crop_pct)
    elif spec.resize_mode == "pad":
        out = fit_size(size, box, max(m.stride for m in rows))
    else:
        unit = math.lcm(*(math.lcm(m.patch_size or spec.patch_size, m.stride) for m in rows))
        out = cover_size(size, box, unit)
    images = {m.name: cut(pixels[m.name], m, view, _reduced(out, m.stride)) for m in rows}
    mask = torch.ones(out, dtype=torch.bool)
    if spec.resize_mode == "pad":
        images = {m.name: pad(images[m.name], m, box) for m in rows}
        mask = F.pad(mask, (0, box[1] - out[1], 0, box[0] - out[0]))
    return _Framed(images, view, out, mask)


def pad(image: Tensor, modality: Modality, size: Size) -> Tensor:
    """Fill an image of stored values up at bottom and right.

    Args:
        image: ``(..., h, w)`` at the modality's resolution; what is larger already stays.
        modality: Its row.
        size: ``(H, W)`` wanted, at full resolution.
    """
    h, w = _reduced(size, modality.stride)
    below, right = max(0, h - image.shape[-2]), max(0, w - image.shape[-1])
    value: float = PHOTO_PADDING if modality.is_photo else PADDING
    if modality.no_data is not None:
        value = modality.no_data
    return F.pad(image, (0, right, 0, below), value=value)


def _rows(images: Mapping[str, Any], spec: ModelSpec) -> list[Modality]:
    """Rows of the given images, in the model's order."""
    names = [m.name for m in spec.inputs]
    unknown = [name for name in images if name not in names]
    if unknown or not images:
        given = f"no input {', '.join(map(repr, unknown))}" if unknown else "no images given"
        raise ValueError(f"{given}: this model takes {', '.join(names)}")
    return [m for m in spec.inputs if m.name in images]


def _as_list(value: Any) -> list[ImageLike]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _reduced(size: Size, stride: int) -> Size:
    return size[0] // stride, size[1] // stride
