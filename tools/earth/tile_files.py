"""Write the tiles of a data set; the files depend on the settings alone."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from tools.common.jobs import PRESENT, WRITTEN, Tally, summary
from tools.common.staging import write_file
from tools.common.target_folder import Target
from tools.earth.land_cover import CLASSES, land_share, palette, region_type
from tools.earth.maps import Earth
from tools.earth.packages import PACKAGES
from tools.earth.regions import HELD_OUT, MARGIN, Tile, held_out_tiles, training_tiles
from tools.earth.source_notes import SOURCES

MIN_LAND = 0.25
"""Smallest share of land in a tile."""
SPLITS = ("train", *HELD_OUT)
JPEG_QUALITY = 93
VERSION = 1


@dataclass(frozen=True)
class Settings:
    """Settings of a data set.

    Attributes:
        tile: Side of training tiles in pixels.
        stride: Pixels between the centres of neighbouring training tiles.
        seed: Seed of the positions of training tiles.
    """

    tile: int = 160
    stride: int = 16
    seed: int = 0


def make_earth(earth: Earth, settings: Settings, target: Target) -> str:
    """Write the missing tiles.

    Returns:
        The summary.

    Raises:
        UserError: The folder was made with other settings.
        OSError: A file cannot be written.
    """
    sources = [package.requirement for package in PACKAGES]
    target.claim({"dataset": "earth", "version": VERSION, **asdict(settings), "sources": sources})
    target.write_class_names(CLASSES, SPLITS)
    write_file(target.root, target.root / "SOURCES.md", SOURCES.encode())
    target.write_json(target.root / "regions.json", describe_regions())
    tally: Tally = Counter()
    for tile in tqdm(list(all_tiles(settings)), unit="tile", disable=None):
        outcome = _write_tile(earth, tile, target)
        if outcome:
            tally[tile.split, outcome] += 1
    return summary("earth", tally, target.root)


def all_tiles(settings: Settings) -> Iterator[Tile]:
    """Positions of all tiles, with and without land."""
    yield from training_tiles(settings.tile, settings.stride, settings.seed)
    for split in HELD_OUT:
        yield from held_out_tiles(split, settings.tile)


def describe_regions() -> dict[str, Any]:
    """Content of ``regions.json``: the held-out boxes, in degrees."""
    boxes = {
        split: {name: asdict(box) for name, box in regions.items()}
        for split, regions in HELD_OUT.items()
    }
    return {"margin_degrees": MARGIN, **boxes}


def _write_tile(earth: Earth, tile: Tile, target: Target) -> str | None:
    """Write the files of a tile, unless they exist or it is mostly water."""
    latitudes, longitudes = tile.box.centres(tile.size, tile.size)
    ids = earth.land_cover_at(latitudes, longitudes)
    group = region_type(ids)
    if group is None or land_share(ids) < MIN_LAND:
        return None
    key = f"{group}/{tile.name}"
    rgb = target.path(tile.split, "rgb", key, ".jpg")
    elevation, land_cover = (target.path(tile.split, m, key) for m in ("elevation", "landcover"))
    if target.is_done([rgb, elevation, land_cover]):
        return PRESENT
    colours = Image.fromarray(earth.colour_of(tile.box, tile.size, tile.size))
    write_file(target.root, rgb, _encode(colours, "JPEG", quality=JPEG_QUALITY, subsampling=0))
    target.write_png(elevation, earth.elevation_at(latitudes, longitudes))
    write_file(target.root, land_cover, _encode(_with_palette(ids), "PNG", optimize=True))
    return WRITTEN


def _with_palette(ids: npt.NDArray[Any]) -> Image.Image:
    """Image of class ids that viewers show in the colours of the classes."""
    image = Image.fromarray(ids)
    image.putpalette(palette())
    return image


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
