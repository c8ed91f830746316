"""RGB pictures of single samples in model space."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from multimae.nn.tokens import patch_statistics, patchify, unpatchify
from multimae.plotting.colours import Picture, label_palette, scalar_colours
from multimae.specs.modalities import Modality

_WRONG, _CORRECT = (249, 142, 9), (36, 34, 44)


def to_picture(x: Tensor, modality: Modality, reference: Tensor | None = None) -> Picture:
    """One sample in model space as an RGB picture at full resolution.

    Args:
        x: ``[C, h, w]``; for labels class ids ``[h, w]`` or logits ``[K, h, w]``.
        modality: Modality of ``x``.
        reference: Ground truth, ``[C, h, w]``. Its 2nd and 98th percentiles set the colour range
            of modalities without a natural range; default: ``x``.

    Returns:
        ``[h * stride, w * stride, 3]``.
    """
    x = x.detach().cpu()
    reference = x if reference is None else reference.detach().cpu()
    kind = "labels" if modality.is_labels else modality.plot
    picture = _DRAW[kind](x, modality, reference)
    return picture.repeat(modality.stride, axis=0).repeat(modality.stride, axis=1)


def error_picture(pred: Tensor, truth: Tensor, modality: Modality) -> Picture:
    """Error map of a prediction as an RGB picture at full resolution.

    Args:
        pred: ``[C, h, w]``; for labels class ids ``[h, w]`` or logits ``[K, h, w]``.
        truth: As ``pred``, or class ids.
        modality: Modality of both.

    Returns:
        ``[h * stride, w * stride, 3]``. Labels: wrong pixels orange, correct ones dark. Images: L1
        error averaged over channels, from dark violet (0) to pale yellow (half the colour range;
        without a natural range, that is the ground truth's 2nd to 98th percentile).
    """
    pred, truth = pred.detach().cpu(), truth.detach().cpu()
    if modality.is_labels:
        ids, wanted = (x.argmax(dim=0) if x.ndim == 3 else x for x in (pred, truth))
        wrong = (ids != wanted).numpy()
        picture = np.where(wrong[..., None], _WRONG, _CORRECT).astype(np.uint8)
    else:
        low, high = _range(truth, modality)
        error = (pred.float() - truth.float()).abs().mean(dim=0).numpy()
        picture = scalar_colours(error, 0.0, (high - low) / 2)
    return picture.repeat(modality.stride, axis=0).repeat(modality.stride, axis=1)


def with_void(target: Modality) -> Modality:
    """Label modality with void (and padding) as class 0 and its own classes shifted by one."""
    names = ("void", *target.class_names) if target.class_names else ()
    return dataclasses.replace(target, num_classes=target.num_classes + 1, class_names=names)


def unnormalize_patches(pred: Tensor, truth: Tensor, patch: int) -> Tensor:
    """De-normalise a ``norm_pix`` prediction with the ground truth's patch statistics.

    Args:
        pred: ``[C, h, w]``, prediction of a ``norm_pix`` target.
        truth: ``[C, h, w]`` in model space.
        patch: Patch side in pixels of this map.

    Returns:
        ``[C, h, w]`` in model space.
    """
    size = (patch, patch)
    mean, std = patch_statistics(patchify(truth[None].float(), size))
    values = patchify(pred[None].float(), size) * std + mean
    return unpatchify(values, (truth.shape[-2] // patch, truth.shape[-1] // patch), size)[0]


def _draw_rgb(x: Tensor, m: Modality, reference: Tensor) -> Picture:
    if m.normalization == "mean_std":
        unit = _unit_scale(x, m)
    else:
        low, high = colour_range(_shown(reference, m))
        unit = (x.float() - low) / (high - low)
    unit = _shown(unit, m)
    if unit.shape[0] < 3:
        unit = unit[:1].expand(3, -1, -1)
    return _to_bytes(unit[:3])


def _draw_scalar(x: Tensor, m: Modality, reference: Tensor) -> Picture:
    shown = _shown(x, m).float().mean(dim=0).numpy()
    return scalar_colours(shown, *colour_range(_shown(reference, m)))


def _draw_grey(x: Tensor, m: Modality, reference: Tensor) -> Picture:
    low, high = colour_range(_shown(reference, m))
    unit = (_shown(x, m).float().mean(dim=0, keepdim=True) - low) / (high - low)
    return _to_bytes(unit.expand(3, -1, -1))


def _shown(x: Tensor, m: Modality) -> Tensor:
    """Channels to draw."""
    return x[list(m.plot_channels)] if m.plot_channels else x


def _draw_labels(x: Tensor, m: Modality, reference: Tensor) -> Picture:
    ids = (x.argmax(dim=0) if x.ndim == 3 else x).long().numpy()
    known = (ids >= 0) & (ids < m.num_classes)
    return label_palette(m.num_classes)[np.where(known, ids, 0)]


def _draw_normals(x: Tensor, m: Modality, reference: Tensor) -> Picture:
    vectors = 2.0 * _unit_scale(x, m) - 1.0
    return _to_bytes(0.5 + 0.5 * torch.nn.functional.normalize(vectors, dim=0))


_DRAW: dict[str, Callable[[Tensor, Modality, Tensor], Picture]] = {
    "rgb": _draw_rgb,
    "scalar": _draw_scalar,
    "grey": _draw_grey,
    "labels": _draw_labels,
    "normals": _draw_normals,
}


def _unit_scale(x: Tensor, m: Modality) -> Tensor:
    """``(stored value / max_value)``, so in [0, 1] for true images."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (m.mean, m.std))
    return x.float() * std + mean


def _range(truth: Tensor, m: Modality) -> tuple[float, float]:
    """Ends of the colour range, in model space."""
    if m.plot in ("scalar", "grey") or m.normalization != "mean_std":
        return colour_range(truth)
    return 0.0, 1.0 / (sum(m.std) / len(m.std))


def colour_range(reference: Tensor) -> tuple[float, float]:
    """2nd and 98th percentile of the finite values; (0, 1) if there are none."""
    values = reference.float()
    values = values[values.isfinite()]
    if values.numel() == 0:
        return 0.0, 1.0
    low, high = np.percentile(values.numpy(), [2, 98]).tolist()
    return low, max(high, low + 1e-6)


def _to_bytes(unit: Tensor) -> Picture:
    """``[3, h, w]`` in [0, 1] to ``[h, w, 3]`` bytes."""
    scaled = unit.nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.permute(1, 2, 0).contiguous().numpy()
