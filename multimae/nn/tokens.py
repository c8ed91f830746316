"""Token layout, patches and position tables.

The sequence is ``[tokens of modality 1 ... tokens of modality M, global tokens]``; a
:class:`TokenLayout` describes it to every decoder and head (the ``input_info`` of their forward).
Patch vectors are laid out (channel, row, column).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Size = tuple[int, int]
Sides = int | tuple[int, int]
"""Side of a square, or (height, width)."""

PATCH_VARIANCE_EPS = 1e-6


def as_size(value: int | Size) -> Size:
    """``value`` as (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def plain_sides(value: Sides | Sequence[int]) -> Sides:
    """``value`` as the side of a square, else as (height, width)."""
    h, w = (value, value) if isinstance(value, int) else value
    return h if h == w else (h, w)


@dataclass(frozen=True)
class TokenSlice:
    """Tokens ``start .. stop-1`` of the sequence: one modality on a (rows, columns) grid."""

    start: int
    grid: Size

    @property
    def num_tokens(self) -> int:
        """Tokens of this modality."""
        return self.grid[0] * self.grid[1]

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + self.num_tokens


@dataclass(frozen=True)
class TokenLayout:
    """Layout of the full (unmasked) sequence.

    Attributes:
        image_size: (height, width) at full resolution, in pixels.
        slices: Modality name -> its slice, in sequence order.
        num_global_tokens: Global tokens behind the modalities' tokens.
    """

    image_size: Size
    slices: dict[str, TokenSlice]
    num_global_tokens: int

    @classmethod
    def from_grids(
        cls, image_size: Size, grids: dict[str, Size], num_global_tokens: int
    ) -> TokenLayout:
        """Concatenate the modalities' grids."""
        slices: dict[str, TokenSlice] = {}
        start = 0
        for name, grid in grids.items():
            slices[name] = TokenSlice(start, grid)
            start = slices[name].stop
        return cls(image_size, slices, num_global_tokens)

    @property
    def num_task_tokens(self) -> int:
        """Number of tokens of all modalities, without global tokens."""
        return sum(s.num_tokens for s in self.slices.values())


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
    """Mean and standard deviation of every patch, for ``norm_pix`` targets.

    The standard deviation is ``sqrt(unbiased variance + 1e-6)`` (SPEC section 4).

    Args:
        patches: (..., C*P*P).

    Returns:
        Both (..., 1).
    """
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, torch.sqrt(var + PATCH_VARIANCE_EPS)


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """Fixed 2D sin-cos table.

    With row r, column c and frequencies ``w_i = 10000^(-i/(dim/4))`` the channels are the blocks
    ``[sin r*w, cos r*w, sin c*w, cos c*w]``.

    Returns:
        (1, dim, height, width), float32.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, got {dim}")
    quarter = dim // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows = torch.arange(height, dtype=torch.float64).outer(omega)  # (h, dim/4)
    cols = torch.arange(width, dtype=torch.float64).outer(omega)  # (w, dim/4)
    rows = torch.cat([rows.sin(), rows.cos()], dim=1).T[:, :, None].expand(-1, -1, width)
    cols = torch.cat([cols.sin(), cols.cos()], dim=1).T[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, cols]).unsqueeze(0).float()


def resize_pos_emb(table: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """Resize a position table (1, D, h, w) to ``grid``, if it has another size.

    Args:
        table: Position table.
        grid: Target (rows, columns).
        mode: ``bicubic`` or ``bilinear`` (align_corners False).

    Returns:
        (1, D, rows, columns) in the table's dtype.
    """
    # Comparing symbolic sizes would specialise the program that torch.export builds.
    symbolic = any(isinstance(size, torch.SymInt) for size in grid)
    if not symbolic and tuple(table.shape[-2:]) == tuple(grid):
        return table
    return F.interpolate(table, size=grid, mode=mode, align_corners=False)


def pos_emb_tokens(table: Tensor, grid: Size, mode: str) -> Tensor:
    """Table (1, D, h, w) resized to ``grid`` and flattened row-major: (1, rows*columns, D).

    Resized in every forward pass, under 1 % of its time: a cache would have to notice new weights.
    """
    return resize_pos_emb(table, grid, mode).flatten(2).transpose(1, 2)
