"""Masked losses of targets that lack pixels (``no_data``) or whole samples."""

from __future__ import annotations

import torch
from torch import Tensor

from multimae.criterion import MaskedCrossEntropyLoss, MaskedLoss
from multimae.nn.label_loss import IGNORED
from multimae.nn.patches import patchify


def per_sample_where(
    loss: MaskedLoss, pred_bnp: Tensor, target: Tensor, valid: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Loss of each sample over the pixels that have a value, and whether it counts.

    Args:
        loss: Of the modality; not one that standardises patches.
        pred_bnp: (B, N, C*P*P), entries (channel, row, column).
        target: (B, C, H, W), or class ids (B, H, W); what it holds at other pixels is not read.
        valid: Bool (B, 1, H, W), for labels (B, H, W).
        mask: (B, N), 1 = counted; ``None`` counts every token.

    Returns:
        losses (B,), the mean over counted tokens' pixels, 0 where there are none; counted (B,).
    """
    patches = patchify(valid.to(pred_bnp.dtype), loss.patch_size)  # (B, N, P*P)
    if isinstance(loss, MaskedCrossEntropyLoss):
        per_token = loss.per_token(pred_bnp, target.masked_fill(~valid, IGNORED))
    else:
        channels = pred_bnp.shape[-1] // patches.shape[-1]
        wanted = loss.target_patches(target).to(pred_bnp.dtype)
        seen = patches.repeat(1, 1, channels).bool()
        # Nothing is wrong where there is no value, and no gradient flows from there.
        per_token = loss.per_token(torch.where(seen, pred_bnp, wanted), target)
    share = patches.float().mean(dim=-1)  # of a token's pixels; the loss is a mean over all
    weight = torch.ones_like(share) if mask is None else mask.to(share.dtype)
    count = (share * weight).sum(dim=1)
    total = (per_token * weight).sum(dim=1)
    return total / torch.where(count > 0, count, 1.0), count > 0


def without_absent(mask: Tensor, present: Tensor) -> Tensor:
    """A mask (B, N) that counts nothing of the samples that are not ``present`` (B,)."""
    return mask * present.to(mask.dtype).unsqueeze(1)
