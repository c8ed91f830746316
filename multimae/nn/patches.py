"""Between images and per-token patch vectors, laid out (channel, row, column)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from multimae.nn.tokens import Size

EPS = 1e-6


def patchify(image: Tensor, patch_size: Size) -> Tensor:
    """Image (B, C, H, W) -> patches (B, N, C*P*P); tokens row-major, entries (channel, row, col).

    Label maps (B, H, W) give (B, N, P*P).

    Raises:
        ValueError: H or W is not a multiple of the patch.
    """
    ph, pw = patch_size
    height, width = image.shape[-2:]
    if height % ph or width % pw:
        raise ValueError(f"size {height}x{width} is not divisible by the patch size {ph}x{pw}")
    if image.ndim == 3:
        return rearrange(image, "b (h p) (w q) -> b (h w) (p q)", p=ph, q=pw)
    return rearrange(image, "b c (h p) (w q) -> b (h w) (c p q)", p=ph, q=pw)


def unpatchify(patches: Tensor, grid: Size, patch_size: Size) -> Tensor:
    """Patches (B, N, C*P*P) on ``grid`` -> image (B, C, H, W); inverse of :func:`patchify`."""
    (h, w), (ph, pw) = grid, patch_size
    return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=h, w=w, p=ph, q=pw)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every patch, as ``norm_pix`` targets use them.

    The variance is unbiased, and 1e-6 is added to it inside the root (SPEC section 4).

    Args:
        patches: (..., C*P*P).

    Returns:
        Both (..., 1).
    """
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, torch.sqrt(var + EPS)
