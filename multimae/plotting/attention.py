"""Pictures of attention maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from multimae.plotting.colours import Picture, scalar_colours
from multimae.plotting.drawing import FADED, GUTTER, INK, MARGIN, MIN_CELL, WHITE, font

_TITLE = 20
_FRAME = (64, 220, 120)
_MAX_ALPHA = 0.85


def attention_picture(picture: Picture, attention: npt.NDArray[np.floating], top: float) -> Picture:
    """Overlay an attention map on a picture.

    Args:
        picture: ``[H, W, 3]``.
        attention: ``[rows, columns]``, non-negative.
        top: Attention shown in the brightest colour.

    Returns:
        ``[H, W, 3]``.
    """
    height, width = picture.shape[:2]
    strength = np.clip(attention.astype(np.float64) / max(top, 1e-12), 0.0, 1.0)
    smooth = Image.fromarray((strength * 255).round().astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    level = np.asarray(smooth, dtype=np.float64) / 255.0
    grey = picture.astype(np.float64).mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    colours = scalar_colours(level, 0.0, 1.0).astype(np.float64)
    weight = _MAX_ALPHA * np.sqrt(level)[..., None]
    faded = 0.25 * picture + 0.75 * grey
    mixed: Picture = ((1 - weight) * faded + weight * colours).astype(np.uint8)
    return mixed


def attention_grid(
    pictures: Mapping[str, Picture],
    maps: Mapping[str, npt.NDArray[np.floating]],
    query: tuple[str, int, int],
    *,
    caption: str = "",
) -> Image.Image:
    """One column per modality: its picture, and the attention map of a query patch below.

    Args:
        pictures: ``[H, W, 3]`` by modality.
        maps: ``[rows, columns]`` by modality, from :meth:`multimae.MultiMAE.attention`.
        query: Modality, row and column of the query patch, which is framed.
        caption: Line of text at the bottom.

    Raises:
        ValueError: A map without a picture, or no maps.
    """
    missing = [name for name in maps if name not in pictures]
    if missing or not maps:
        raise ValueError(f"no picture of {', '.join(missing) or 'anything'}")
    height, width = next(iter(pictures.values())).shape[:2]
    scale = max(1, -(-MIN_CELL // max(height, width)))
    cell = (width * scale, height * scale)
    top = max(float(np.percentile(attention, 99)) for attention in maps.values())
    size = (
        2 * MARGIN + len(maps) * (cell[0] + GUTTER) - GUTTER,
        2 * MARGIN + int(1.5 * _TITLE) + 2 * cell[1] + GUTTER + (_TITLE if caption else 0),
    )
    image = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(image)
    y = MARGIN + int(1.5 * _TITLE)
    for i, (name, attention) in enumerate(maps.items()):
        x = MARGIN + i * (cell[0] + GUTTER)
        share = f"  {float(attention.sum()):.0%} of the attention"
        draw.text((x, MARGIN + _TITLE), name, INK, font(_TITLE), anchor="ls")
        indent = font(_TITLE).getlength(name)
        draw.text((x + indent, MARGIN + _TITLE), share, FADED, font(0.72 * _TITLE), anchor="ls")
        overlay = attention_picture(pictures[name], attention, top)
        tiles: Sequence[Picture] = (pictures[name], overlay)
        for k, tile in enumerate(tiles):
            resized = Image.fromarray(tile).resize(cell, Image.Resampling.NEAREST)
            corner = (x, y + k * (cell[1] + GUTTER))
            image.paste(resized, corner)
            if name == query[0]:
                _frame_patch(draw, corner, cell, attention.shape, query[1:])
    if caption:
        draw.text((MARGIN, size[1] - 0.8 * MARGIN), caption, FADED, font(0.8 * _TITLE), anchor="ls")
    return image


def _frame_patch(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    cell: tuple[int, int],
    grid: tuple[int, ...],
    patch: tuple[int, int],
) -> None:
    """Frame the query patch."""
    (row, column), (rows, columns) = patch, grid[:2]
    left, top = corner[0] + column * cell[0] / columns, corner[1] + row * cell[1] / rows
    box = (left, top, left + cell[0] / columns - 1, top + cell[1] / rows - 1)
    draw.rectangle(box, outline=_FRAME, width=3)
