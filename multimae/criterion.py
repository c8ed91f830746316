"""Losses (SPEC section 4).

The masked losses work on tokens: images are cut into patches once, and a mask (B, N) selects
rows. ``forward`` takes images, ``per_sample`` takes a decoder's per-token output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae.nn.label_loss import patch_cross_entropy
from multimae.nn.patches import patch_statistics, patchify
from multimae.nn.tokens import Size, as_size
from multimae.specs.modalities import Modality


class _MaskedLoss(nn.Module):
    """Mean over a token's entries, over a sample's counted tokens, over samples that have any."""

    def __init__(self, patch_size: int | Size = 16, stride: int = 1) -> None:
        super().__init__()
        ph, pw = as_size(patch_size)
        self.patch_size: Size = (max(1, ph // stride), max(1, pw // stride))

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scalar loss.

        Args:
            pred: (B, C, H, W).
            target: (B, C, H, W), or class ids (B, H, W).
            mask: (B, N), 1 = masked = counted. ``None`` counts everything; all zero gives 0
                (with a graph).
        """
        return self.from_patches(patchify(pred, self.patch_size), target, mask)

    def from_patches(self, pred_bnp: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :meth:`forward` with the prediction as (B, N, C*P*P), entries (channel, row, col)."""
        return mean_over_counted(*self.per_sample(pred_bnp, target, mask))

    def per_sample(
        self, pred_bnp: Tensor, target: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss of each sample and whether it counts (has a masked token).

        Returns:
            losses (B,), 0 where it does not count; counted (B,) bool.
        """
        loss_bn = self.per_token(pred_bnp, target)
        if mask is None:
            return loss_bn.mean(dim=1), torch.ones_like(loss_bn[:, 0], dtype=torch.bool)
        weight = mask.to(loss_bn.dtype)
        count = weight.sum(dim=1)
        return (loss_bn * weight).sum(dim=1) / count.clamp_min(1), count > 0

    def per_token(self, pred_bnp: Tensor, target: Tensor) -> Tensor:
        """Loss of every token, float32 (B, N)."""
        raise RuntimeError(f"{type(self).__name__} defines no per-token loss")


def mean_over_counted(losses_b: Tensor, counted_b: Tensor) -> Tensor:
    """Mean over the samples that count; 0 (with a graph) if none does.

    A plain nan-mean would send NaN gradients through the samples it leaves out.
    """
    return (losses_b * counted_b).sum() / counted_b.sum().clamp_min(1)


class MaskedMSELoss(_MaskedLoss):
    """Squared error; with ``norm_pix`` the target is standardised per patch."""

    def __init__(
        self, patch_size: int | Size = 16, stride: int = 1, norm_pix: bool = False
    ) -> None:
        """``patch_size`` at full resolution; the images are at ``1/stride`` of it."""
        super().__init__(patch_size, stride)
        self.norm_pix = norm_pix

    def target_patches(self, target: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, C*P*P) float32, standardised if ``norm_pix``."""
        patches = patchify(target, self.patch_size).float()
        if self.norm_pix:
            mean, std = patch_statistics(patches)
            patches = (patches - mean) / std
        return patches

    def per_token(self, pred_bnp: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of every token, float32 (B, N)."""
        target_bnp = self.target_patches(target)
        return F.mse_loss(pred_bnp.float(), target_bnp, reduction="none").mean(dim=-1)


class MaskedL1Loss(MaskedMSELoss):
    """Absolute error; with ``norm_pix`` the target is standardised per patch."""

    def per_token(self, pred_bnp: Tensor, target: Tensor) -> Tensor:
        """Mean absolute error of every token, float32 (B, N)."""
        target_bnp = self.target_patches(target)
        return F.l1_loss(pred_bnp.float(), target_bnp, reduction="none").mean(dim=-1)


class MaskedCrossEntropyLoss(_MaskedLoss):
    """Cross-entropy of class logits, mean over pixels."""

    def __init__(
        self, patch_size: int | Size = 16, stride: int = 1, label_smoothing: float = 0.0
    ) -> None:
        """``patch_size`` at full resolution; the label maps are at ``1/stride`` of it."""
        super().__init__(patch_size, stride)
        self.label_smoothing = label_smoothing

    def per_token(self, pred_bnp: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of every token, float32 (B, N)."""
        labels = patchify(target, self.patch_size)  # (B, N, P*P)
        b, n, p = labels.shape
        logits, labels = pred_bnp.reshape(b * n, -1, p), labels.reshape(b * n, p)
        if not self.label_smoothing:
            return patch_cross_entropy(logits, labels).view(b, n)
        loss = F.cross_entropy(
            logits.float(), labels, reduction="none", label_smoothing=self.label_smoothing
        )
        return loss.view(b, n, p).mean(dim=-1)


MaskedLoss = MaskedMSELoss | MaskedL1Loss | MaskedCrossEntropyLoss


def build_loss(modality: Modality, patch_size: int | Size) -> MaskedLoss:
    """Pre-training loss of a modality, as its table row says."""
    patch = modality.patch_size or patch_size
    if modality.loss == "cross_entropy":
        return MaskedCrossEntropyLoss(patch, modality.stride)
    kind = MaskedL1Loss if modality.loss == "l1" else MaskedMSELoss
    return kind(patch, modality.stride, modality.norm_pix)


def masked_l1_loss(pred: Tensor, target: Tensor, mask_valid: Tensor | None = None) -> Tensor:
    """Mean absolute error over valid pixels (any shape; mask broadcast, nonzero = valid)."""
    diff, count = _valid_difference(pred, target, mask_valid)
    return diff.abs().sum() / count


def masked_mse_loss(pred: Tensor, target: Tensor, mask_valid: Tensor | None = None) -> Tensor:
    """Mean squared error over valid pixels (any shape; mask broadcast, nonzero = valid)."""
    diff, count = _valid_difference(pred, target, mask_valid)
    return diff.square().sum() / count


def masked_berhu_loss(pred: Tensor, target: Tensor, mask_valid: Tensor | None = None) -> Tensor:
    """Reverse Huber (Laina et al. 2016) over valid pixels.

    ``|d|`` below ``c`` and ``(d^2 + c^2) / 2c`` from ``c`` on, with
    ``c = max(0.2 * max|d|, 1e-5)`` over the valid pixels, detached.
    """
    diff, count = _valid_difference(pred, target, mask_valid)
    diff = diff.abs()
    c = (0.2 * diff.detach().amax()).clamp_min(1e-5)
    return torch.where(diff < c, diff, (diff.square() + c * c) / (2 * c)).sum() / count


def _valid_difference(
    pred: Tensor, target: Tensor, mask_valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``pred - target``, 0 at invalid pixels (whatever they hold), and the number of valid ones.

    The count is at least 1, so that no valid pixel at all gives 0 with a graph.
    """
    diff = pred - target
    if mask_valid is None:
        return diff, diff.new_full((), float(diff.numel()))
    valid = (mask_valid > 0).expand_as(diff)
    return diff.masked_fill(~valid, 0.0), valid.sum().clamp_min(1)
