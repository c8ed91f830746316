"""Tiles and the split of each: whole regions are held out, since neighbours are alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tools.earth.maps import Box

PIXELS_PER_DEGREE = 15
"""Of the tiles, and of the colour map."""
HELD_OUT_SHARE = 0.8
"""Side of held-out tiles relative to training tiles, from which random crops are taken."""
MARGIN = 1.0
"""Degrees between a held-out region and the nearest training tile."""
COVERED = Box(-180, 180, -56, 75)
"""Without Antarctica and the far north."""

HELD_OUT: Mapping[str, Mapping[str, Box]] = {
    "val": {
        "eastern north america": Box(-98, -75, 30, 48),
        "southern andes": Box(-76, -56, -42, -23),
        "western africa": Box(-17, 4, 7, 27),
        "eastern asia": Box(106, 130, 31, 49),
        "borneo": Box(95, 119, -8, 8),
    },
    "test": {
        "western north america": Box(-125, -102, 31, 49),
        "northern amazon": Box(-76, -57, -9, 9),
        "southern europe": Box(-10, 16, 35, 52),
        "eastern africa": Box(29, 49, -8, 12),
        "himalaya": Box(70, 94, 25, 44),
        "central siberia": Box(92, 124, 52, 70),
        "western australia": Box(113, 132, -36, -18),
    },
}
"""Boxes by split and name; deserts, mountains, forests, fields and coasts on several continents."""


@dataclass(frozen=True)
class Tile:
    """Position of a tile.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        region: Name of the held-out region; "" in training.
        size: Side in pixels.
        box: Its edges.
    """

    split: str
    region: str
    size: int
    box: Box

    @property
    def name(self) -> str:
        """Latitude and longitude of the centre in 1/100 degrees: ``n4512_w07030``."""
        latitude = round(50 * (self.box.south + self.box.north))
        longitude = round(50 * (self.box.west + self.box.east))
        row = f"{'n' if latitude >= 0 else 's'}{abs(latitude):04d}"
        return f"{row}_{'e' if longitude >= 0 else 'w'}{abs(longitude):05d}"


def training_tiles(size: int, stride: int, seed: int) -> Iterator[Tile]:
    """Overlapping tiles outside the held-out regions and their margins.

    Args:
        size: Side of a tile in pixels.
        stride: Pixels between the centres of neighbours.
        seed: Shifts every row of tiles by less than a stride.
    """
    closed = [box.grown(MARGIN) for boxes in HELD_OUT.values() for box in boxes.values()]
    for box in _boxes_in(COVERED, size, stride, np.random.default_rng(seed)):
        if not any(box.overlaps(other) for other in closed):
            yield Tile("train", "", size, box)


def held_out_tiles(split: str, size: int) -> Iterator[Tile]:
    """Tiles inside the regions of ``split``, a quarter of their side apart.

    Args:
        split: ``val`` or ``test``.
        size: Side of a training tile in pixels.
    """
    side = held_out_size(size)
    for region, around in HELD_OUT[split].items():
        for box in _boxes_in(around, side, max(1, side // 4)):
            yield Tile(split, region, side, box)


def held_out_size(size: int) -> int:
    """Side of held-out tiles, given that of training tiles."""
    return round(size * HELD_OUT_SHARE)


def _boxes_in(
    around: Box, size: int, stride: int, rng: np.random.Generator | None = None
) -> Iterator[Box]:
    """Squares on the ground, ``size`` pixels of ``1 / PIXELS_PER_DEGREE`` degrees of latitude high.

    On an equirectangular map they are wider towards the poles, by the cosine of the latitude of
    their centre. Rows are at whole pixels.
    """
    height = size / PIXELS_PER_DEGREE
    rows = round((around.north - around.south) * PIXELS_PER_DEGREE) - size
    for row in range(0, rows + 1, stride):
        north = around.north - row / PIXELS_PER_DEGREE
        stretch = 1 / math.cos(math.radians(north - height / 2))
        width, step = height * stretch, stride / PIXELS_PER_DEGREE * stretch
        west = around.west + (0.0 if rng is None else float(rng.uniform(0, step)))
        while west + width <= around.east:
            yield Box(west, west + width, north - height, north)
            west += step
