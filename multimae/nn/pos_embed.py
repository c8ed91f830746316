"""2D sine-cosine position tables and their resizing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    """Resize a table (1, D, h, w) to ``grid``; a table of that size is returned as it is.

    Args:
        table: Position table.
        grid: Wanted (rows, columns).
        mode: ``bicubic`` or ``bilinear`` (align_corners False).

    Returns:
        (1, D, rows, columns) in the table's dtype.
    """
    # A symbol, in torch.export, is not compared: that would fix the size. The result is the same.
    symbolic = any(isinstance(size, torch.SymInt) for size in grid)
    if not symbolic and tuple(table.shape[-2:]) == tuple(grid):
        return table
    return F.interpolate(table, size=grid, mode=mode, align_corners=False)


class PositionCache:
    """Fixed tables that were resized, by grid and type: every step needs the same ones."""

    def __init__(self) -> None:
        """Empty."""
        self._kept: dict[tuple[object, ...], Tensor] = {}
        self._version = -1

    def clear(self) -> None:
        """Forget everything: the table was replaced."""
        self._kept.clear()

    def tokens(
        self, table: Tensor, grid: tuple[int, int], mode: str, dtype: torch.dtype | None = None
    ) -> Tensor:
        """As :func:`pos_emb_tokens`, in ``dtype``; trained tables are resized every time."""
        wanted = table.dtype if dtype is None else dtype
        symbolic = any(isinstance(side, torch.SymInt) for side in grid)
        if table.requires_grad or symbolic or torch.compiler.is_compiling():
            return pos_emb_tokens(table, grid, mode).to(wanted)
        if self._version != table._version:
            self.clear()
            self._version = table._version
        key = (grid, mode, wanted, table.device)
        if key not in self._kept:
            # A tensor of inference mode could not serve a training step later.
            with torch.inference_mode(False), torch.no_grad():
                self._kept[key] = pos_emb_tokens(table, grid, mode).to(wanted).contiguous()
        return self._kept[key]


def forget_positions(module: nn.Module, *_: object) -> None:
    """Before a module with ``positions`` loads weights (a hook): empty that cache."""
    module.positions.clear()  # type: ignore[operator, union-attr]


def pos_emb_tokens(table: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """Table (1, D, h, w) resized to ``grid`` and flattened row-major: (1, rows*columns, D)."""
    return resize_pos_emb(table, grid, mode).flatten(2).transpose(1, 2)
