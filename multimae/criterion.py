"""Losses and task balancing (SPEC section 4).

Masked losses work on tokens: targets are patchified, and a mask (B, N) selects tokens. ``forward``
takes images, ``per_sample`` takes the patch vectors of a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae.nn.tokens import Size, as_size, patch_statistics, patchify
from multimae.specs.modalities import Modality

IGNORED = -100
"""Label of pixels that are ignored."""


class _MaskedLoss(nn.Module):
    """Mean over token entries, then over counted tokens, then over samples with such tokens."""

    def __init__(self, patch_size: int | Size = 16, stride: int = 1) -> None:
        super().__init__()
        ph, pw = as_size(patch_size)
        self.patch_size: Size = (max(1, ph // stride), max(1, pw // stride))

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scalar loss.

        Args:
            pred: (B, C, H, W).
            target: (B, C, H, W), or class ids (B, H, W).
            mask: (B, N), 1 = masked = counted; ``None``: all tokens. An all-zero mask gives a loss
                of 0 with a graph.
        """
        return self.from_patches(patchify(pred, self.patch_size), target, mask)

    def from_patches(self, pred_bnp: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :meth:`forward` with the prediction as (B, N, C*P*P), entries (channel, row, col)."""
        return mean_over_counted(*self.per_sample(pred_bnp, target, mask))

    def per_sample(
        self, pred_bnp: Tensor, target: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Per-sample loss, and whether the sample has a counted token.

        Returns:
            Losses (B,), 0 for samples that do not count; counted (B,) bool.
        """
        loss_bn = self.per_token(pred_bnp, target)
        if mask is None:
            return loss_bn.mean(dim=1), torch.ones_like(loss_bn[:, 0], dtype=torch.bool)
        weight = mask.to(loss_bn.dtype)
        count = weight.sum(dim=1)
        return (loss_bn * weight).sum(dim=1) / count.clamp_min(1), count > 0

    def per_token(self, pred_bnp: Tensor, target: Tensor) -> Tensor:
        """Per-token loss, float32 (B, N)."""
        raise RuntimeError(f"{type(self).__name__} defines no per-token loss")


def mean_over_counted(losses_b: Tensor, counted_b: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean over counted samples; 0 with a graph if there are none.

    ``torch.nanmean`` would give NaN gradients for ignored samples.

    Args:
        losses_b: Per-sample losses.
        counted_b: Bool, whether a sample counts.
        count: Divisor, see :func:`mean_of_sum`; default: number of counted samples.
    """
    return mean_of_sum((losses_b * counted_b).sum(), counted_b.sum() if count is None else count)


def mean_of_sum(total: Tensor, count: Tensor) -> Tensor:
    """``total / count``; ``total`` where ``count`` is 0.

    Args:
        total: Sum over the counted samples or values of a micro-batch.
        count: Their number in the micro-batch; or in the global batch, divided by the world size.
            Then the sum over micro-batches, averaged over ranks, is the loss of the global batch.
    """
    return total / torch.where(count > 0, count, torch.ones_like(count))


def counted_samples(
    loss: MaskedLoss, mask: Tensor | None, valid: Tensor | None, num_samples: int
) -> Tensor | int:
    """Number of samples that count in :func:`per_sample_where` and ``per_sample``.

    Args:
        loss: Loss of the modality.
        mask: (B, N), 1 = counted; ``None``: all tokens.
        valid: Pixels with a value, as for :func:`per_sample_where`; ``None``: all pixels.
        num_samples: B.
    """
    counted = mask
    if valid is not None:
        seen = patchify(valid.float(), loss.patch_size).amax(dim=-1)
        counted = seen if mask is None else seen * mask
    return num_samples if counted is None else (counted > 0).any(dim=1).sum()


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
        loss = F.cross_entropy(
            logits.float(),
            labels,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return loss.view(b, n, p).mean(dim=-1)


MaskedLoss = MaskedMSELoss | MaskedL1Loss | MaskedCrossEntropyLoss


def build_loss(modality: Modality, patch_size: int | Size) -> MaskedLoss:
    """Build the pre-training loss of a modality."""
    patch = modality.patch_size or patch_size
    if modality.loss == "cross_entropy":
        return MaskedCrossEntropyLoss(patch, modality.stride)
    regression: dict[str, type[MaskedMSELoss]] = {"l1": MaskedL1Loss, "mse": MaskedMSELoss}
    return regression[modality.loss](patch, modality.stride, modality.norm_pix)


def per_sample_where(
    loss: MaskedLoss, pred_bnp: Tensor, target: Tensor, valid: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Per-sample loss over valid pixels, and whether the sample counts.

    Args:
        loss: Loss of the modality, without ``norm_pix``.
        pred_bnp: (B, N, C*P*P), entries (channel, row, column).
        target: (B, C, H, W), or class ids (B, H, W); values at invalid pixels are ignored.
        valid: Bool (B, 1, H, W), for labels (B, H, W).
        mask: (B, N), 1 = counted; ``None``: all tokens.

    Returns:
        Losses (B,), the mean over valid pixels of counted tokens, 0 without such pixels; counted
        (B,) bool.
    """
    patches = patchify(valid.to(pred_bnp.dtype), loss.patch_size)  # (B, N, P*P)
    if isinstance(loss, MaskedCrossEntropyLoss):
        per_token = loss.per_token(pred_bnp, target.masked_fill(~valid, IGNORED))
    else:
        channels = pred_bnp.shape[-1] // patches.shape[-1]
        wanted = loss.target_patches(target).to(pred_bnp.dtype)
        seen = patches.repeat(1, 1, channels).bool()
        # Zero error and zero gradient at invalid pixels.
        per_token = loss.per_token(torch.where(seen, pred_bnp, wanted), target)
    share = patches.float().mean(dim=-1)  # valid fraction of a token, whose loss is a mean over all
    weight = torch.ones_like(share) if mask is None else mask.to(share.dtype)
    count = (share * weight).sum(dim=1)
    total = (per_token * weight).sum(dim=1)
    return total / torch.where(count > 0, count, 1.0), count > 0


def without_absent(mask: Tensor, present: Tensor) -> Tensor:
    """Mask (B, N) with all tokens of absent samples set to 0; ``present`` is (B,)."""
    return mask * present.to(mask.dtype).unsqueeze(1)


class NoWeightingStrategy(nn.Module):
    """Return losses unchanged."""

    def forward(
        self,
        losses: Mapping[str, Tensor],
        counts: Mapping[str, Tensor] | None = None,
        num_batches: int = 1,
    ) -> dict[str, Tensor]:
        """Task -> loss."""
        return dict(losses)


def __getattr__(name: str) -> object:
    """Import what pre-training does not need by default (PEP 562)."""
    if name == "UncertaintyWeightingStrategy":
        from multimae.nn import balancing

        return getattr(balancing, name)
    if name in ("masked_l1_loss", "masked_mse_loss", "masked_berhu_loss"):
        from multimae.nn import valid_losses

        return getattr(valid_losses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
