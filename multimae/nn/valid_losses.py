"""Losses over valid pixels, of depth and Taskonomy tasks (SPEC section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from multimae.criterion import mean_of_sum


def masked_l1_loss(
    pred: Tensor, target: Tensor, mask_valid: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    """Mean absolute error over valid pixels.

    Args:
        pred: Any shape.
        target: As ``pred``.
        mask_valid: Non-zero = valid, broadcast to ``pred``; ``None``: all pixels.
        count: Divisor, see :func:`mean_of_sum`; default: number of valid values.
    """
    diff, count = _valid_difference(pred, target, mask_valid, count)
    return mean_of_sum(diff.abs().sum(), count)


def masked_mse_loss(
    pred: Tensor, target: Tensor, mask_valid: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    """Mean squared error over valid pixels; arguments as for :func:`masked_l1_loss`."""
    diff, count = _valid_difference(pred, target, mask_valid, count)
    return mean_of_sum(diff.square().sum(), count)


def masked_berhu_loss(
    pred: Tensor, target: Tensor, mask_valid: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    """Reverse Huber (Laina et al. 2016) over valid pixels; arguments as :func:`masked_l1_loss`.

    ``|d|`` below ``c`` and ``(d^2 + c^2) / 2c`` from ``c`` on, with
    ``c = max(0.2 * max|d|, 1e-5)`` over the valid pixels of the micro-batch, as published;
    detached.
    """
    diff, count = _valid_difference(pred, target, mask_valid, count)
    diff = diff.abs()
    c = (0.2 * diff.detach().amax()).clamp_min(1e-5)
    total = torch.where(diff < c, diff, (diff.square() + c * c) / (2 * c)).sum()
    return mean_of_sum(total, count)


def _valid_difference(
    pred: Tensor, target: Tensor, mask_valid: Tensor | None, count: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``pred - target``, 0 at invalid pixels (also NaN), and the divisor."""
    diff = pred - target
    if mask_valid is None:
        return diff, diff.new_full((), float(diff.numel())) if count is None else count
    valid = (mask_valid > 0).expand_as(diff)
    return diff.masked_fill(~valid, 0.0), valid.sum() if count is None else count
