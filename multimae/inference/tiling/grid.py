"""Places of overlapping tiles, and their outputs blended without seams.

The weight of a tile is a product of one weight per row and one per column, so that normalizing
both along their axis makes the weights of every pixel sum to 1. Only the part of the outputs that
later tiles still change is kept: the overlap with the next row of tiles.

Shapes: C channels, h and w of a tile, H and W of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multimae.nn.tokens import Size

MAX_OVERLAP = 0.9


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis.

    Attributes:
        tile: Length of a tile.
        starts: First pixel of each.
        weights: ``(len(starts), tile)``; the weights of a pixel sum to 1.
    """

    tile: int
    starts: tuple[int, ...]
    weights: Tensor

    @classmethod
    def along(cls, size: int, tile: int, overlap: float, unit: int = 1) -> Axis:
        """Place tiles evenly; none reaches over the end of an image that is larger than a tile.

        Args:
            size: Length of the image.
            tile: Length of a tile.
            overlap: Least share of a tile that the next one covers, too.
            unit: Tiles but the last start at multiples of this.
        """
        last = max(0, size - tile)
        step = max(unit, math.floor(tile * (1 - overlap) / unit) * unit)
        even = math.ceil(last / max(1, math.ceil(last / step)) / unit) * unit  # at most step
        starts = (*range(0, last, max(1, even)), last)
        return cls(tile, starts, _weights(starts, tile))

    @property
    def size(self) -> int:
        """Length that the tiles cover."""
        return self.starts[-1] + self.tile

    def step(self, index: int) -> int:
        """Pixels of a tile before the next one; all of the last one's."""
        following = self.starts[index + 1 : index + 2]
        return following[0] - self.starts[index] if following else self.tile


def _weights(starts: tuple[int, ...], tile: int) -> Tensor:
    """Raised cosines over the overlaps, normalized."""
    raw = torch.ones(len(starts), tile, dtype=torch.float64)
    for i, (start, following) in enumerate(zip(starts, starts[1:], strict=False)):
        overlap = max(0, start + tile - following)
        ramp = torch.sin((torch.arange(overlap) + 0.5) * (math.pi / 2 / max(1, overlap))) ** 2
        raw[i, tile - overlap :] *= ramp.flip(0)
        raw[i + 1, :overlap] *= ramp
    total = torch.zeros(starts[-1] + tile, dtype=torch.float64)
    for start, weights in zip(starts, raw, strict=True):
        total[start : start + tile] += weights
    for start, weights in zip(starts, raw, strict=True):
        weights /= total[start : start + tile]
    return raw.float()


@dataclass(frozen=True)
class TileGrid:
    """Tiles of an image, row by row.

    Attributes:
        rows: Along the height.
        columns: Along the width.
    """

    rows: Axis
    columns: Axis

    @classmethod
    def over(cls, size: Size, tile: Size, overlap: float, unit: int = 1) -> TileGrid:
        """Cover an image of ``size`` ``(H, W)``; see :meth:`Axis.along`."""
        pairs = zip(size, tile, strict=True)
        rows, columns = (Axis.along(length, side, overlap, unit) for length, side in pairs)
        return cls(rows, columns)

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.rows.starts) * len(self.columns.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """``(top, left)`` of each tile."""
        return ((y, x) for y in self.rows.starts for x in self.columns.starts)


@dataclass(frozen=True)
class Block:
    """Outputs that are final, of a box of the image.

    Attributes:
        top: First row.
        left: First column.
        values: Head -> (C, rows, columns).
    """

    top: int
    left: int
    values: dict[str, Tensor]


def blend(grid: TileGrid, tiles: Iterable[Mapping[str, Tensor]]) -> Iterator[Block]:
    """Blend the outputs of overlapping tiles.

    Args:
        grid: The tiles.
        tiles: Outputs ``(C, h, w)`` by head for each tile, in the order of ``grid``.

    Yields:
        One block per tile, in the same order; together they cover the image once.
    """
    heads: dict[str, _Blender] = {}
    outputs = iter(tiles)
    for i, top in enumerate(grid.rows.starts):
        for j, left in enumerate(grid.columns.starts):
            values = {
                name: heads.setdefault(name, _Blender(grid)).add(i, j, tile)
                for name, tile in next(outputs).items()
            }
            yield Block(top, left, values)


class _Blender:
    """Sums of weighted outputs of one head that are not final yet."""

    def __init__(self, grid: TileGrid) -> None:
        self.rows, self.columns = grid.rows, grid.columns
        self._below: Tensor | None = None  # of rows that the next row of tiles also covers
        self._right: Tensor | None = None  # of columns that the next tile also covers

    def add(self, i: int, j: int, tile: Tensor) -> Tensor:
        """Add tile ``(i, j)``; return what no later tile changes, ``(C, rows, columns)``."""
        rows, columns = self.rows, self.columns
        weights = rows.weights[i][:, None] * columns.weights[j]
        total = tile.float() * weights.to(tile.device)
        if j and self._right is not None:
            total[..., : self._right.shape[-1]] += self._right
        height, width = rows.step(i), columns.step(j)
        self._right = total[..., width:]
        done = total[..., :width]
        span = slice(columns.starts[j], columns.starts[j] + width)
        if i and self._below is not None:
            above = rows.tile - rows.step(i - 1)
            done[:, :above] += self._below[:, :above, span]
        if height < rows.tile:
            if self._below is None:
                most = rows.tile - min(map(rows.step, range(len(rows.starts))))
                self._below = total.new_zeros(len(total), most, columns.size)
            self._below[:, : rows.tile - height, span] = done[:, height:]
        return done[:, :height]
