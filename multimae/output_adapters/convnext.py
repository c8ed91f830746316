"""ConvNeXt head: tokens unfolded to finer cells, then ConvNeXt blocks (SPEC section 3).

Shapes: b batch, n tokens, h x w token grid, p = s*s cells per token, c channels of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from multimae.nn.layers import DropPath, LayerNorm, drop_path_rates
from multimae.nn.tokens import TokenLayout
from multimae.output_adapters.features import (
    EncoderTokens,
    last_layer,
    main_task_grid,
    main_task_tokens,
)


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution and an MLP per pixel, residual (Liu et al. 2022)."""

    def __init__(self, dim: int, drop_path: float = 0.0) -> None:
        """``dim`` channels; ``drop_path`` is the stochastic depth of the branch."""
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """(b, c, H, W) -> (b, c, H, W)."""
        x = self.norm(self.dwconv(x_bchw).permute(0, 2, 3, 1))
        x = self.pwconv2(self.act(self.pwconv1(x)))
        return x_bchw + self.drop_path(x.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


class ConvNeXtAdapter(nn.Module):
    """Dense prediction with ``preds_per_patch`` cells per token."""

    def __init__(
        self,
        num_classes: int,
        embed_dim: int = 6144,
        preds_per_patch: int = 16,
        main_tasks: Sequence[str] = ("rgb",),
        patch_size: int = 16,
        depth: int = 4,
        interpolate_mode: str = "bilinear",
        drop_path_rate: float = 0.0,
    ) -> None:
        """Build the blocks; the encoder-dependent projection is built by :meth:`init`.

        Args:
            num_classes: Output channels.
            embed_dim: Width of the projected token; a cell has ``embed_dim / preds_per_patch``.
            preds_per_patch: Cells per token p, a square number.
            main_tasks: Modalities whose tokens are decoded.
            patch_size: Patch side of the encoder; unused, the token layout has the grid.
            depth: ConvNeXt blocks.
            interpolate_mode: ``bilinear`` or ``nearest``, the final upsampling.
            drop_path_rate: Stochastic depth, growing linearly.

        Raises:
            ValueError: p is not a square, or does not divide ``embed_dim``.
        """
        super().__init__()
        self.cells_per_side = math.isqrt(preds_per_patch)
        if self.cells_per_side**2 != preds_per_patch or embed_dim % preds_per_patch:
            raise ValueError(
                f"preds_per_patch = {preds_per_patch} must be a square number that divides "
                f"embed_dim = {embed_dim}"
            )
        self.embed_dim = embed_dim
        self.main_tasks = tuple(main_tasks)
        self.patch_size = patch_size
        self.interpolate_mode = interpolate_mode
        dim = embed_dim // preds_per_patch
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(dim, rate) for rate in drop_path_rates(drop_path_rate, depth))
        )
        self.final_layer = nn.Conv2d(dim, num_classes, kernel_size=1)

    def init(self, dim_tokens_enc: int = 768) -> None:
        """Build the projection from the encoder's width."""
        self.proj_dec = nn.Linear(dim_tokens_enc * len(self.main_tasks), self.embed_dim)

    def forward(self, encoder_tokens: EncoderTokens, input_info: TokenLayout) -> Tensor:
        """Tokens (b, N+g, D), or those of all layers, -> (b, num_classes, H, W).

        Raises:
            ValueError: A main task is not in the input, or tokens are masked.
        """
        tokens = last_layer(encoder_tokens)
        x = self.proj_dec(main_task_tokens(tokens, input_info, self.main_tasks))
        h, w = main_task_grid(input_info, self.main_tasks)
        s = self.cells_per_side
        x = rearrange(x, "b (h w) (i j c) -> b (h i) (w j) c", h=h, w=w, i=s, j=s)
        x = self.final_layer(self.blocks(x.permute(0, 3, 1, 2)))  # channels last
        return F.interpolate(x, size=input_info.image_size, mode=self.interpolate_mode)
