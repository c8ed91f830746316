"""Heat maps of scores by what a model is given: dots for the inputs, a coloured cell per score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from multimae.plotting.drawing import FADED, INK, MARGIN, WHITE, font, stack

Colour = tuple[int, int, int]

# From far better through no better (paper) to worse than the trivial predictor.
_STOPS: tuple[tuple[float, Colour], ...] = (
    (0.0, (17, 63, 103)),
    (0.35, (45, 112, 150)),
    (0.7, (140, 186, 204)),
    (1.0, (245, 243, 236)),
    (1.3, (244, 184, 120)),
    (1.6, (222, 124, 54)),
)
_EMPTY = (236, 237, 240)
_TEXT, _SMALL = 19, 14
_CELL = (124, 52)
_GAP = 3
_DOT = 9


@dataclass(frozen=True)
class Cell:
    """One score.

    Attributes:
        level: Its colour: 0 dark blue, 1 paper, 1.6 orange; nan grey.
        text: The score.
        small: A line below it.
    """

    level: float
    text: str
    small: str = ""


@dataclass(frozen=True)
class HeatMap:
    """One block of cells.

    Attributes:
        title: Above it.
        note: Below the title.
        columns: Names of the scores.
        rows: Per row a flag for every input: given or not.
        cells: As many rows of as many cells as there are columns.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[bool, ...], ...]
    cells: tuple[tuple[Cell, ...], ...]


def heat_maps(maps: Sequence[HeatMap], inputs: Sequence[str], caption: str = "") -> Image.Image:
    """Blocks under one another, with the inputs' names above their dots.

    Args:
        maps: The blocks.
        inputs: Names of the inputs.
        caption: One line at the bottom.
    """
    column = max(_width(name, _TEXT) for name in inputs) + 22
    cell = max(_CELL[0], *(_width(c, _TEXT) + 16 for m in maps for c in m.columns))
    side = MARGIN + len(inputs) * column
    across = max(len(m.columns) for m in maps)
    texts = [_width(m.title, _TEXT + 3) for m in maps]
    texts += [_width(line, _SMALL + 1) for m in maps for line in m.note.splitlines()]
    width = max(side + MARGIN + across * (cell + _GAP), max(texts) + MARGIN) + MARGIN
    blocks = [_block(m, inputs, column, cell, width) for m in maps]
    blocks.append(_key(width, caption))
    return stack(blocks)


def _block(m: HeatMap, inputs: Sequence[str], column: int, cell: int, width: int) -> Image.Image:
    notes = m.note.splitlines()
    head = MARGIN + 30 + 20 * len(notes) + 36
    height = head + len(m.rows) * (_CELL[1] + _GAP) + 6
    image = Image.new("RGB", (width, height), WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), m.title, INK, font(_TEXT + 3))
    for i, line in enumerate(notes):
        draw.text((MARGIN, MARGIN + 31 + 20 * i), line, FADED, font(_SMALL + 1))
    side = 2 * MARGIN + len(inputs) * column
    for i, name in enumerate(inputs):
        place = (MARGIN + (i + 0.5) * column, head - 8)
        draw.text(place, name, FADED, font(_SMALL + 2), anchor="ms")
    for c, name in enumerate(m.columns):
        draw.text((side + c * (cell + _GAP) + cell / 2, head - 8), name, INK, font(_TEXT), "ms")
    for r, (given, cells) in enumerate(zip(m.rows, m.cells, strict=True)):
        top = head + r * (_CELL[1] + _GAP)
        _dots(draw, given, column, top + _CELL[1] / 2)
        for c, each in enumerate(cells):
            _draw_cell(draw, each, (side + c * (cell + _GAP), top), cell)
    return image


def _dots(draw: ImageDraw.ImageDraw, given: Sequence[bool], column: int, y: float) -> None:
    """A filled dot for every given input, a ring for the others, a line between the filled."""
    xs = [MARGIN + (i + 0.5) * column for i in range(len(given))]
    filled = [x for x, g in zip(xs, given, strict=True) if g]
    if len(filled) > 1:
        draw.line((filled[0], y, filled[-1], y), fill=INK, width=3)
    for x, g in zip(xs, given, strict=True):
        box = (x - _DOT, y - _DOT, x + _DOT, y + _DOT)
        draw.ellipse(box, fill=INK if g else WHITE, outline=INK if g else FADED, width=2)


def _draw_cell(
    draw: ImageDraw.ImageDraw, cell: Cell, corner: tuple[float, float], width: int
) -> None:
    x, y = corner
    colour = level_colour(cell.level)
    draw.rounded_rectangle((x, y, x + width, y + _CELL[1]), 5, fill=colour)
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140
    ink = WHITE if dark else INK
    if math.isnan(cell.level):
        ink = FADED
    middle = y + _CELL[1] / 2
    lift = 8 if cell.small else 0
    draw.text((x + width / 2, middle - lift), cell.text, ink, font(_TEXT), anchor="mm")
    if cell.small:
        soft = (214, 226, 234) if dark else (52, 58, 70)
        draw.text((x + width / 2, middle + 13), cell.small, soft, font(_SMALL), anchor="mm")


def level_colour(level: float) -> Colour:
    """Colour of a level, see :class:`Cell`."""
    if math.isnan(level):
        return _EMPTY
    knots = [stop for stop, _ in _STOPS]
    red, green, blue = (
        round(float(np.interp(level, knots, [colour[c] for _, colour in _STOPS]))) for c in range(3)
    )
    return red, green, blue


def _key(width: int, caption: str) -> Image.Image:
    """The colours, and the caption."""
    image = Image.new("RGB", (width, MARGIN + 30 + (26 if caption else 0) + MARGIN // 2), WHITE)
    draw = ImageDraw.Draw(image)
    left, top, length = MARGIN, MARGIN, 240
    for i in range(length):
        draw.line((left + i, top, left + i, top + 14), fill=level_colour(1.6 * i / length))
    text = "perfect ... no better than trivial (pale) ... worse"
    draw.text((left + length + 14, top + 7), text, FADED, font(_SMALL), anchor="lm")
    if caption:
        draw.text((left, top + 34), caption, FADED, font(_SMALL), anchor="lm")
    return image


def _width(text: str, size: int) -> int:
    return math.ceil(font(size).getlength(text))
