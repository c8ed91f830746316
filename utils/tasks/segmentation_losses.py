"""Focal and Dice loss of label maps, beside cross-entropy.

Shapes: logits (B, K, H, W), labels (B, H, W) with ``IGNORE`` where a pixel does not count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.criterion import mean_of_sum
from multimae.inference.truth import IGNORE


def focal_sum(logits: Tensor, labels: Tensor, weights: Tensor | None, gamma: float) -> Tensor:
    """Sum over pixels of ``w (1 - p)^gamma (-log p)``, p of the true class (Lin et al., 2017)."""
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    # The gradient of x^gamma is infinite at 0 for gamma < 1.
    losses = (-torch.expm1(-losses)).clamp_min(1e-12).pow(gamma) * losses
    if weights is not None:
        losses = losses * weights[labels.masked_fill(labels == IGNORE, 0)]
    return losses.masked_fill(labels == IGNORE, 0.0).sum()


def dice_loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of ``1 - 2 sum(p y) / (sum(p) + sum(y))`` over the classes that ``labels`` has.

    Sums are over the counted pixels of the batch (Milletari et al., 2016), so that the loss is one
    of the batch and not a sum over pixels. 0 with a graph if no pixel counts.
    """
    ids = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    truth = ids == labels[:, None]
    shares = logits.softmax(dim=1) * (labels != IGNORE)[:, None]
    overlap = (shares * truth).sum(dim=(0, 2, 3))
    pixels = truth.sum(dim=(0, 2, 3))
    losses = 1 - 2 * overlap / (shares.sum(dim=(0, 2, 3)) + pixels).clamp_min(1e-6)
    counted = (pixels > 0).to(losses.dtype)
    if weights is not None:
        counted = counted * weights
    return mean_of_sum((losses * counted).sum(), counted.sum())
