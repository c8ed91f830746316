"""From stored images to a batch of model inputs, as a model's spec says."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.images.no_data_tags import TIFF_SUFFIXES, common_no_data, takes_no_data_tag
from multimae.images.pixels import ImageLike, Pixels, check_same_view, size_of
from multimae.images.preprocess import prepare, to_model_input
from multimae.images.readers import to_pixels
from multimae.images.views import View, centred_view, cut
from multimae.nn.tokens import Size, as_size
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec

Images = Mapping[str, ImageLike | Sequence[ImageLike] | Tensor]
"""Images by modality: one each, lists of equal length, or tensors that are model inputs."""

PHOTO_PADDING, PADDING = 128, 254
"""Stored values of padding in photos, and in other images (SPEC section 6)."""


@dataclass(frozen=True)
class Inputs:
    """A batch of model inputs and the images it was made from.

    Attributes:
        x: Modality -> batch in model space.
        raw: Modality -> batch of stored values at the model's resolution; empty for
            tensors.
        views: Per sample, the box of the image that the model sees; empty for tensors.
        inside: ``(h, w)`` of each sample without padding, at full resolution.
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
    """Load images and convert them to a batch of model inputs.

    Args:
        images: See :data:`Images`. Anything but a mapping is the model's first input.
        spec: Spec of the model.
        device: Device of the batch.

    Raises:
        ValueError: No image, unknown modalities, lists of unequal length, images that do not fit
            their modality or each other, or both images and tensors.
    """
    if not isinstance(images, Mapping):
        images = {spec.inputs[0].name: images}
    modalities = _select(images, spec)
    tensors = [m for m in modalities if isinstance(images[m.name], Tensor)]
    if tensors:
        if len(tensors) < len(modalities):
            raise ValueError("pass all modalities as images, or all as model inputs (tensors)")
        x = {m.name: cast(Tensor, images[m.name]).to(device) for m in modalities}
        return Inputs(x, {}, (), ())
    listed = {m.name: _as_list(images[m.name]) for m in modalities}
    counts = {name: len(values) for name, values in listed.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(f"modalities need lists of equal length, at least 1: got {counts}")
    modalities = [_with_tag(m, listed[m.name]) for m in modalities]
    samples = [
        frame({m.name: to_pixels(listed[m.name][i], m) for m in modalities}, modalities, spec)
        for i in range(len(listed[modalities[0].name]))
    ]
    sizes = {tuple(next(iter(s.images.values())).shape[-2:]) for s in samples}
    if len(sizes) > 1:
        raise ValueError(f"resized images of a batch differ in size {sizes}: pass them singly")
    return batch_inputs(stack(samples), modalities, spec, device)


@dataclass(frozen=True)
class Framed:
    """Samples at the model's size, as stored values.

    Attributes:
        images: Modality -> ``(C, h, w)`` or ids ``(h, w)``; stacked samples have a batch dimension.
        mask: Bool ``(H, W)`` at full resolution, False where the image was padded.
        views: Per sample, the box of the image that the model sees.
        inside: ``(h, w)`` of each sample without padding, at full resolution.
    """

    images: dict[str, Tensor]
    mask: Tensor
    views: tuple[View, ...]
    inside: tuple[Size, ...]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.views)


def frame(pixels: Mapping[str, Pixels], modalities: Sequence[Modality], spec: ModelSpec) -> Framed:
    """Bring one sample to the model's size as ``spec.resize_mode`` says.

    Args:
        pixels: Stored pixels by modality, all of one field of view.
        modalities: Their modalities: inputs, and truth that is to be framed like them.
        spec: Spec of the model.

    Raises:
        ImageError: The modalities differ in their aspect ratio.
    """
    check_same_view(pixels, {name: "images" for name in pixels})
    size = max(size_of(p) for p in pixels.values())
    box = as_size(spec.image_size)
    view, out = View(size, 0, 0, *size), box
    if spec.resize_mode == "crop":
        view = centred_view(size, box, spec.crop_pct)
    elif spec.resize_mode == "pad":
        out = fit_size(size, box, max(m.stride for m in modalities))
    else:
        unit = math.lcm(*(math.lcm(m.patch_size or spec.patch_size, m.stride) for m in modalities))
        out = cover_size(size, box, unit)
    images = {m.name: cut(pixels[m.name], m, view, _reduced(out, m.stride)) for m in modalities}
    mask = torch.ones(out, dtype=torch.bool)
    if spec.resize_mode == "pad":
        images = {m.name: pad(images[m.name], m, box) for m in modalities}
        mask = F.pad(mask, (0, box[1] - out[1], 0, box[0] - out[0]))
    return Framed(images, mask, (view,), (out,))


def fit_size(size: Size, box: Size, unit: int, scale: float = 1.0) -> Size:
    """Size that fits a full image into ``box``, its sides rounded to multiples of ``unit``.

    Args:
        size: ``(H, W)`` of the image.
        box: ``(h, w)``.
        unit: Sides of the result are multiples of this.
        scale: Factor on the result.
    """
    factor = scale * min(box[0] / size[0], box[1] / size[1])
    return _scaled(size, factor, unit)


def cover_size(size: Size, box: Size, unit: int) -> Size:
    """Size with which a full image covers ``box``, its sides rounded to multiples of ``unit``."""
    return _scaled(size, max(box[0] / size[0], box[1] / size[1]), unit)


def _scaled(size: Size, factor: float, unit: int) -> Size:
    h, w = (max(1, round(side * factor / unit)) * unit for side in size)
    return h, w


def stack(samples: Sequence[Framed]) -> Framed:
    """Stack single samples of one size and the same modalities."""
    images = {name: torch.stack([s.images[name] for s in samples]) for name in samples[0].images}
    views, inside = (s.views[0] for s in samples), (s.inside[0] for s in samples)
    return Framed(images, torch.stack([s.mask for s in samples]), tuple(views), tuple(inside))


def batch_inputs(
    samples: Framed,
    modalities: Sequence[Modality],
    spec: ModelSpec,
    device: torch.device | str,
    valid: Tensor | None = None,
) -> Inputs:
    """Model inputs of stacked samples.

    Args:
        samples: See :func:`stack`.
        modalities: Inputs.
        spec: Spec of the model.
        device: Device of the batch.
        valid: Bool ``(B, H, W)``: pixels where scalar maps have a value, as in
            :func:`prepare_padded`.
    """
    raw = {m.name: samples.images[m.name].to(device) for m in modalities}
    if spec.resize_mode == "pad":
        inside = samples.mask.to(device)
        known = inside if valid is None else inside & valid.to(device)
        x = prepare_padded(raw, modalities, inside, known)
    else:
        x = prepare(raw, modalities)
    return Inputs(x, raw, samples.views, samples.inside)


def prepare_padded(
    images: Mapping[str, Tensor],
    modalities: Sequence[Modality],
    inside: Tensor,
    valid: Tensor | None = None,
) -> dict[str, Tensor]:
    """Convert images that were padded to one size to model inputs (SPEC section 6).

    Args:
        images: Stored values by modality name, see :func:`to_model_input`.
        modalities: Modalities to prepare.
        inside: Bool ``(B, H, W)`` at full resolution, False where images were padded.
        valid: As ``inside``, for scalar maps, in which more pixels may have no value.

    Returns:
        Prepared tensors: padding is class ``num_classes`` in label maps; in scalar maps it is
        ignored in statistics and 0.
    """
    valid = inside if valid is None else valid
    out = {}
    for m in modalities:
        raw = images[m.name]
        if m.is_labels:
            grid = inside[:, :: m.stride, :: m.stride]
            out[m.name] = to_model_input(raw, m).masked_fill(~grid, m.num_classes)
        elif m.plot == "scalar":
            out[m.name] = to_model_input(raw, m, valid[:, None, :: m.stride, :: m.stride])
        else:
            out[m.name] = to_model_input(raw, m)
    return out


def pad(image: Tensor, modality: Modality, size: Size) -> Tensor:
    """Pad an image of stored values at bottom and right.

    Args:
        image: ``(..., h, w)`` at the modality's resolution; a larger side is not changed.
        modality: Its modality.
        size: ``(H, W)`` of the result, at full resolution.
    """
    h, w = _reduced(size, modality.stride)
    below, right = max(0, h - image.shape[-2]), max(0, w - image.shape[-1])
    value: float = PHOTO_PADDING if modality.is_photo else PADDING
    if modality.no_data is not None:
        value = modality.no_data
    return F.pad(image, (0, right, 0, below), value=value)


def _with_tag(m: Modality, images: Sequence[ImageLike]) -> Modality:
    """Take ``no_data`` from the tags of TIFF files, where the spec has none."""
    paths = [Path(i) for i in images if isinstance(i, str | os.PathLike)]
    tiffs = [(str(p), p) for p in paths if p.suffix.lower() in TIFF_SUFFIXES and p.is_file()]
    if not tiffs or not takes_no_data_tag(m):
        return m
    try:
        return replace(m, no_data=common_no_data(m, tiffs))
    except UserError as err:
        raise ValueError(str(err)) from err


def _select(images: Mapping[str, Any], spec: ModelSpec) -> list[Modality]:
    """Modalities of ``images``, in the model's order."""
    names = [m.name for m in spec.inputs]
    unknown = [name for name in images if name not in names]
    if unknown or not images:
        reason = f"no input {', '.join(map(repr, unknown))}" if unknown else "no images"
        raise ValueError(f"{reason}: this model takes {', '.join(names)}")
    return [m for m in spec.inputs if m.name in images]


def _as_list(value: Any) -> list[ImageLike]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _reduced(size: Size, stride: int) -> Size:
    return size[0] // stride, size[1] // stride
