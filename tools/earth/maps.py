"""Maps of the planet in equirectangular projection, sampled at latitudes and longitudes.

Row 0 is the north pole, column 0 begins at 180 degrees west. Latitudes and longitudes are degrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tools.earth.land_cover import WATER

Array = npt.NDArray[Any]
Degrees = npt.NDArray[np.float64]

STEP_M, LOWEST_M, UNKNOWN_STEP = 28, -450, 255
"""Elevation map of pvlib: metres are ``value * STEP_M + LOWEST_M``; one value is no data."""
OFFSET_M, NO_ELEVATION = 2000, 0
"""Elevation files: stored values are metres above -2000 m, so that all are positive and of one
magnitude; 0 is no data."""


@dataclass(frozen=True)
class Box:
    """A rectangle of the map, in degrees.

    Attributes:
        west: Longitude of the left edge.
        east: Longitude of the right edge.
        south: Latitude of the lower edge.
        north: Latitude of the upper edge.
    """

    west: float
    east: float
    south: float
    north: float

    def contains(self, other: Box) -> bool:
        """Whether ``other`` lies inside."""
        across = self.west <= other.west and other.east <= self.east
        return across and self.south <= other.south and other.north <= self.north

    def overlaps(self, other: Box) -> bool:
        """Whether the two share an area."""
        across = self.west < other.east and other.west < self.east
        return across and self.south < other.north and other.south < self.north

    def grown(self, margin: float) -> Box:
        """The box with ``margin`` degrees added on every side."""
        west, east = self.west - margin, self.east + margin
        return Box(west, east, self.south - margin, self.north + margin)

    def centres(self, height: int, width: int) -> tuple[Degrees, Degrees]:
        """Latitudes ``(height,)`` and longitudes ``(width,)`` of pixel centres."""
        down = (np.arange(height) + 0.5) / height
        across = (np.arange(width) + 0.5) / width
        latitudes = self.north - down * (self.north - self.south)
        return latitudes, self.west + across * (self.east - self.west)


WORLD = Box(-180, 180, -90, 90)


@dataclass(frozen=True, eq=False)
class Earth:
    """The three source maps, each in its own resolution.

    Attributes:
        colour: RGB image.
        elevation: uint8 ``(H, W)``, steps of ``STEP_M``.
        land_cover: uint8 ``(H, W)``, IGBP ids.
    """

    colour: Image.Image
    elevation: npt.NDArray[np.uint8]
    land_cover: npt.NDArray[np.uint8]

    def colour_of(self, box: Box, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Colours of a box ``(height, width, 3)``, averaged where pixels are merged."""
        columns, rows = self.colour.size
        left, right = ((x + 180) / 360 * columns for x in (box.west, box.east))
        top, bottom = ((90 - y) / 180 * rows for y in (box.north, box.south))
        size, edges = (width, height), (left, top, right, bottom)
        return np.asarray(self.colour.resize(size, Image.Resampling.BICUBIC, edges))

    def elevation_at(self, latitudes: Degrees, longitudes: Degrees) -> npt.NDArray[np.uint16]:
        """Metres above ``-OFFSET_M``, bilinear; ``NO_ELEVATION`` where most of the weight has none.

        Returns:
            ``(latitudes, longitudes)``.
        """
        rows, row_share = _neighbours(_row(latitudes, self.elevation), len(self.elevation))
        columns, column_share = _neighbours(
            _column(longitudes, self.elevation), self.elevation.shape[1]
        )
        total = np.zeros((len(latitudes), len(longitudes)))
        weight = np.zeros_like(total)
        for i in range(2):
            for j in range(2):
                steps = self.elevation[rows[i]][:, columns[j]]
                share = row_share[i][:, None] * column_share[j] * (steps != UNKNOWN_STEP)
                total += share * (steps * float(STEP_M) + LOWEST_M)
                weight += share
        known = weight >= 0.5
        metres = np.divide(total, weight, out=np.zeros_like(total), where=known)
        return np.where(known, np.rint(metres + OFFSET_M), NO_ELEVATION).astype(np.uint16)

    def land_cover_at(self, latitudes: Degrees, longitudes: Degrees) -> npt.NDArray[np.uint8]:
        """IGBP ids ``(latitudes, longitudes)`` of the nearest pixels."""
        rows = np.rint(_row(latitudes, self.land_cover)).astype(np.int64)
        columns = np.rint(_column(longitudes, self.land_cover)).astype(np.int64)
        ids: npt.NDArray[np.uint8] = self.land_cover[rows][:, columns]
        return ids


def water_agreement(earth: Earth, rows: int = 0, columns: int = 0) -> float:
    """Share of the planet where blue colour and the water class agree.

    Args:
        earth: The maps.
        rows: Pixels by which the colours are moved down.
        columns: Pixels by which the colours are moved right.
    """
    width, height = earth.colour.size
    water = earth.land_cover_at(*WORLD.centres(height, width)) == WATER
    r, g, b = np.moveaxis(np.asarray(earth.colour).astype(np.int16), -1, 0)
    blue = (b > r + 10) & (b > g)
    return float((np.roll(blue, (rows, columns), (0, 1)) == water).mean())


def _row(latitudes: Degrees, image: Array) -> Degrees:
    """Fractional rows of latitudes; 0 is the centre of the first row."""
    rows: Degrees = (90 - latitudes) / 180 * len(image) - 0.5
    return rows


def _column(longitudes: Degrees, image: Array) -> Degrees:
    """Fractional columns of longitudes; 0 is the centre of the first column."""
    columns: Degrees = (longitudes + 180) / 360 * image.shape[1] - 0.5
    return columns


def _neighbours(
    positions: Degrees, size: int
) -> tuple[tuple[Array, Array], tuple[Degrees, Degrees]]:
    """Indices of the pixels before and after positions, within the image, and their weights."""
    first = np.floor(positions).astype(np.int64)
    share = positions - first
    return (first.clip(0, size - 1), (first + 1).clip(0, size - 1)), (1 - share, share)
