"""From stored pixel values to model inputs, on the device, as each modality declares.

Data loaders return stored values (8- or 16-bit integers), a quarter to a half of the bytes of float
tensors. Everything here runs after the copy to the device and copies nothing back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from multimae.specs.modalities import Modality

ROBUST_RANGE = (0.1, 0.9)
ROBUST_EPS = 1e-6


def to_model_input(
    raw: Tensor,
    modality: Modality,
    valid: Tensor | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Convert stored values to model input.

    Args:
        raw: Images ``(B, C, H, W)`` or class ids ``(B, H, W)`` of any real dtype, uint16 included.
        modality: Modality of the values.
        valid: Bool ``(B, 1, H, W)``, for images. Other pixels are ignored in statistics and become
            0 after normalisation; all are valid if ``None``.
        statistics: Mean and deviation for ``robust`` normalization, of the image that ``raw`` is
            a part of; default: those of ``raw``.

    Returns:
        Images: float32 ``(B, C, H, W)``, normalised as ``modality.normalization`` says. Labels:
        int64 ``(B, H, W)``. Pixels that hold ``modality.no_data`` are 0, or class ``num_classes``.

    Raises:
        ValueError: ``raw`` does not have the modality's number of dimensions or channels, or the
            statistics of ``computed`` are not filled in.
    """
    check_shape(raw, modality)
    has_value = pixels_with_value(raw, modality)
    if modality.is_labels:
        ids = raw.long()
        return ids if has_value is None else ids.masked_fill(~has_value, modality.num_classes)
    if has_value is not None:
        valid = has_value if valid is None else valid & has_value
    if modality.normalization == "computed":
        raise ValueError(
            f"modality '{modality.name}': normalization: computed has no statistics yet; "
            "pre-training computes them; elsewhere set mean and std"
        )
    if modality.normalization == "robust":
        counted = has_value if modality.robust_pixels == "all" else valid
        mean, std = statistics or _statistics(raw, counted, _eps(modality))
        x = (raw.float() - mean) / std
    else:
        scale, shift = affine(modality, raw.device)
        x = torch.addcmul(shift, raw.float(), scale)
    return x if valid is None else x.masked_fill(~valid, 0.0)


def pixels_with_value(raw: Tensor, modality: Modality) -> Tensor | None:
    """Where stored values are not ``modality.no_data``.

    Returns:
        Bool, images ``(B, 1, H, W)`` (True where every channel has a value), labels ``(B, H, W)``;
        ``None`` if the modality has no such value.
    """
    if modality.no_data is None:
        return None
    # uint16 tensors have few operations; class ids and 16-bit values fit int32.
    values = raw if raw.is_floating_point() else raw.to(torch.int32)
    same = values.isnan() if math.isnan(modality.no_data) else values == modality.no_data
    return ~same if modality.is_labels else ~same.any(dim=1, keepdim=True)


def statistics_of(
    raw: Tensor, modality: Modality, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`robust_statistics` of the pixels with a value, and ``valid`` if given."""
    known = pixels_with_value(raw, modality)
    if known is not None:
        valid = known if valid is None else valid & known
    return _statistics(raw, valid, _eps(modality))


def prepare(images: Mapping[str, Tensor], modalities: Sequence[Modality]) -> dict[str, Tensor]:
    """Convert a batch of stored values to model inputs and targets.

    Args:
        images: Stored values by modality name, see :func:`to_model_input`.
        modalities: Modalities to prepare. One with a ``source`` shares the prepared tensor of its
            source.

    Returns:
        Prepared tensors by modality name, in the order of ``modalities``.

    Raises:
        ValueError: A modality's data is not in ``images``.
    """
    out: dict[str, Tensor] = {}
    for m in sorted(modalities, key=lambda m: m.source is not None):
        if m.data_name not in images:
            have = ", ".join(images) or "nothing"
            raise ValueError(f"modality '{m.name}' needs images of '{m.data_name}'; got {have}")
        shared = out.get(m.data_name)
        out[m.name] = to_model_input(images[m.data_name], m) if shared is None else shared
    return {m.name: out[m.name] for m in modalities}


def _statistics(x: Tensor, valid: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return robust_statistics(x, eps) if valid is None else _valid_statistics(x, valid, eps)


def robust_statistics(x: Tensor, eps: float = ROBUST_EPS) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each sample without its lowest and highest 10 % of values.

    Uses the sorted values ``[int(0.1 n) : int(0.9 n)]`` of ``n``; the variance is unbiased, and
    ``eps`` is added to it inside the root.

    Args:
        x: ``(B, ...)`` of any real dtype. No gradient flows through the statistics.
        eps: Added to the variance.

    Returns:
        float32 mean and std, shaped ``(B, 1, ...)`` to broadcast against ``x``.

    Raises:
        ValueError: Fewer than 3 values per sample.
    """
    flat = x.detach().flatten(1)
    n = flat.shape[1]
    low, high = int(ROBUST_RANGE[0] * n), int(ROBUST_RANGE[1] * n)
    if high - low < 2:
        raise ValueError(f"robust statistics need at least 3 values per sample, got {n}")
    if flat.device.type == "cpu" and not torch.compiler.is_compiling():
        # The order within the range is irrelevant: partitioning is faster than torch.sort.
        kept = torch.from_numpy(np.partition(flat.numpy(), (low, high - 1), axis=1)[:, low:high])
        kept = kept.float()
    else:
        kept = flat.float().sort(dim=1).values[:, low:high]
    # Centred on one of its values, a constant sample has variance exactly zero, and large values
    # keep their precision.
    origin = kept[:, :1]
    var, offset = torch.var_mean(kept - origin, dim=1, keepdim=True)
    shape = (-1,) + (1,) * (x.ndim - 1)
    return (origin + offset).view(shape), (var + eps).sqrt().view(shape)


def _eps(modality: Modality) -> float:
    """1e-6 in squared stored units: the only effect of dividing values by ``robust_unit``."""
    return ROBUST_EPS * modality.robust_unit**2


def _valid_statistics(x: Tensor, valid: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """:func:`robust_statistics` of each sample's valid values."""
    values = x.float().masked_fill(~valid, torch.inf).flatten(1).sort(dim=1).values
    count = valid.expand_as(x).flatten(1).sum(dim=1, keepdim=True)
    low, high = ((share * count).long() for share in ROBUST_RANGE)
    index = torch.arange(values.shape[1], device=x.device)
    kept = (index >= low) & (index < high)
    n = kept.sum(dim=1, keepdim=True)
    origin = torch.where(n > 0, values.gather(1, low.clamp_max(values.shape[1] - 1)), 0.0)
    offset = torch.where(kept, values - origin, 0.0)
    mean = offset.sum(dim=1, keepdim=True) / n.clamp_min(1)
    squares = torch.where(kept, offset - mean, 0.0).square().sum(dim=1, keepdim=True)
    var = squares / (n - 1).clamp_min(1)
    shape = (-1,) + (1,) * (x.ndim - 1)
    return (origin + mean).view(shape), (var + eps).sqrt().view(shape)


def affine(modality: Modality, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift ``(C, 1, 1)`` of ``mean_std``, rounded from float64."""
    scale = tuple(1 / (modality.max_value * s) for s in modality.std)
    shift = tuple(-m / s for m, s in zip(modality.mean, modality.std, strict=True))
    return per_channel(scale, device), per_channel(shift, device)


def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Constants ``(C, 1, 1)``, float32."""
    if torch.compiler.is_compiling():  # a graph fills them on the device
        return torch.stack([torch.full((1, 1), value, device=device) for value in values])
    return _on_device(values, device)


@lru_cache(maxsize=128)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Upload constants once: each upload would stall the GPU."""
    with torch.inference_mode(False):  # an inference tensor could not serve a training step later
        return torch.tensor(values, dtype=torch.float64).float().to(device).view(-1, 1, 1)


def check_shape(x: Tensor, modality: Modality) -> None:
    """Raise a ValueError unless ``x`` is a batch of the modality."""
    ndim = 3 if modality.is_labels else 4
    fits = x.ndim == ndim and (modality.is_labels or x.shape[1] == modality.num_channels)
    if not fits:
        want = "(B, H, W)" if modality.is_labels else f"(B, {modality.num_channels}, H, W)"
        raise ValueError(f"modality '{modality.name}' is {want}, got {tuple(x.shape)}")


def upload(tensor: Tensor, device: torch.device | None) -> Tensor:
    """Copy a tensor of the host to ``device`` without waiting for it."""
    if device is not None and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
