"""Grid of inputs, predictions and ground truth, one picture per sample and column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from multimae.plotting.colours import Picture
from multimae.plotting.drawing import (
    FADED,
    GUTTER,
    INK,
    MARGIN,
    MIN_CELL,
    WHITE,
    draw_legend,
    font,
    stack,
)
from multimae.specs.modalities import Modality

_TITLE, _CAPTION = 20, 16
_ACROSS = 6  # pictures per line


def prediction_grid(
    columns: Mapping[str, Sequence[Picture]],
    *,
    captions: Sequence[str] = (),
    legend: Modality | None = None,
    ids: npt.NDArray[np.integer] | None = None,
) -> Image.Image:
    """Draw a grid of predictions.

    Args:
        columns: Title -> one picture ``[H, W, 3]`` per sample, resized to a common cell.
        captions: Line of text under every sample, such as its name and score.
        legend: Label modality to draw a legend for.
        ids: Class ids in the pictures, any shape; required with ``legend``.

    Raises:
        ValueError: No columns, or columns of unequal length.
    """
    counts = {len(pictures) for pictures in columns.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError("a prediction grid needs columns of one length, at least one sample")
    (count,) = counts
    height, width = next(iter(columns.values()))[0].shape[:2]
    scale = max(1, -(-MIN_CELL // max(height, width)))
    cell = (width * scale, height * scale)
    widest = max((font(_CAPTION).getlength(text) for text in captions), default=0)
    block = (
        max(len(columns) * (cell[0] + GUTTER), int(widest)) + MARGIN,
        cell[1] + GUTTER + (2 * _CAPTION if captions else 0),
    )
    across = max(1, min(count, _ACROSS // len(columns)))
    top = MARGIN + 2 * _TITLE
    size = (
        MARGIN + across * block[0],
        MARGIN + top + -(-count // across) * block[1] - GUTTER,
    )
    image = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(image)
    for c, (title, pictures) in enumerate(columns.items()):
        for i, picture in enumerate(pictures):
            x = MARGIN + i % across * block[0] + c * (cell[0] + GUTTER)
            if i < across:
                draw.text((x, MARGIN + _TITLE), title, INK, font(_TITLE), anchor="ls")
            resized = Image.fromarray(picture).resize(cell, Image.Resampling.NEAREST)
            image.paste(resized, (x, top + i // across * block[1]))
    for i, caption in enumerate(captions):
        x, y = MARGIN + i % across * block[0], top + i // across * block[1] + cell[1]
        draw.text((x, y + 1.3 * _CAPTION), caption, FADED, font(_CAPTION), anchor="ls")
    if legend is None or ids is None:
        return image
    return stack([image, draw_legend(legend, ids, MARGIN, _CAPTION, image.width)])
