"""Land cover classes of the IGBP legend, as MODIS MCD12C1 numbers them (0 is water)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

IGBP: Mapping[str, str] = {
    "water": "#1c0dff",
    "evergreen needleleaf forest": "#05450a",
    "evergreen broadleaf forest": "#086a10",
    "deciduous needleleaf forest": "#54a708",
    "deciduous broadleaf forest": "#78d203",
    "mixed forest": "#009900",
    "closed shrubland": "#c6b044",
    "open shrubland": "#dcd159",
    "woody savanna": "#dade48",
    "savanna": "#fbff13",
    "grassland": "#b6ff05",
    "permanent wetland": "#27ff87",
    "cropland": "#c24f44",
    "urban": "#a5a5a5",
    "cropland and natural vegetation": "#ff6d4c",
    "snow and ice": "#69fff8",
    "barren": "#f9ffa4",
}
"""Names by id, with the colours in which the MODIS land cover products are usually drawn."""

CLASSES = tuple(IGBP)
WATER = CLASSES.index("water")

REGION_TYPES: Mapping[str, tuple[int, ...]] = {
    "bare": (15, 16),
    "cropland": (12, 14),
    "forest": (1, 2, 3, 4, 5),
    "grassland": (10,),
    "savanna": (8, 9),
    "shrubland": (6, 7),
}
"""Groups of ids by which tiles are classified; wetland and urban land dominate none."""


def region_type(ids: npt.NDArray[np.uint8]) -> str | None:
    """Most frequent group of ``REGION_TYPES``; ``None`` if no pixel belongs to one."""
    counts = np.bincount(ids.ravel(), minlength=len(CLASSES))
    totals = {name: int(counts[list(group)].sum()) for name, group in REGION_TYPES.items()}
    best = max(totals, key=lambda name: totals[name])
    return best if totals[best] else None


def palette() -> list[int]:
    """Colours by id, flat, for ``Image.putpalette``."""
    return [value for colour in IGBP.values() for value in bytes.fromhex(colour[1:])]


def land_share(ids: npt.NDArray[Any]) -> float:
    """Share of pixels that are not water."""
    return float((ids != WATER).mean())
