"""Focal and Dice loss of label maps, beside cross-entropy.

Shapes: logits (B, K, H, W), labels (B, H, W) with ``IGNORE`` where a pixel does not count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.inference.truth import IGNORE


def focal_sum(logits: Tensor, labels: Tensor, weights: Tensor | None, gamma: float) -> Tensor:
    """Sum over pixels of ``w (1 - p)^gamma (-log p)``, p of the true class (Lin et al., 2017)."""
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    # The gradient of x^gamma is infinite at 0 for gamma < 1.
    losses = (-torch.expm1(-losses)).clamp_min(1e-12).pow(gamma) * losses
    if weights is not None:
        losses = losses * weights[labels.masked_fill(labels == IGNORE, 0)]
    return losses.masked_fill(labels == IGNORE, 0.0).sum()


def dice_sum(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Sum over images of ``1 - 2 sum(p y) / (sum(p) + sum(y))``, the mean over an image's classes.

    Sums are over the counted pixels of an image (Milletari et al., 2016), the weighted mean over
    the classes that its labels have. Images that :func:`counted_images` does not count add 0.
    """
    ids = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    truth = ids == labels[:, None]
    shares = logits.softmax(dim=1) * (labels != IGNORE)[:, None]
    overlap = (shares * truth).sum(dim=(2, 3))
    pixels = truth.sum(dim=(2, 3))
    losses_bk = 1 - 2 * overlap / (shares.sum(dim=(2, 3)) + pixels).clamp_min(1e-6)
    counted_bk = (pixels > 0).to(losses_bk.dtype)
    if weights is not None:
        counted_bk = counted_bk * weights
    total_b = counted_bk.sum(dim=1)
    means_b = (losses_bk * counted_bk).sum(dim=1) / total_b.clamp_min(torch.finfo().tiny)
    return means_b.sum()


def counted_images(labels: Tensor, weights: Tensor | None) -> Tensor:
    """Number of images with a labelled pixel whose class weight is not 0."""
    counted = labels != IGNORE
    if weights is not None:
        counted &= weights[labels.masked_fill(labels == IGNORE, 0)] > 0
    return counted.flatten(1).any(dim=1).sum()
