"""A picture grid of predictions: one sample a row, one titled column per input, guess and truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from multimae.modalities import Modality
from utils.colours import Picture
from utils.plotting import FADED, GUTTER, INK, MARGIN, MIN_CELL, WHITE, draw_legend, font, stack

_TITLE, _CAPTION = 20, 16


def prediction_grid(
    columns: Mapping[str, Sequence[Picture]],
    *,
    captions: Sequence[str] = (),
    legend: Modality | None = None,
    ids: npt.NDArray[np.integer] | None = None,
) -> Image.Image:
    """Compose pictures of predictions; every training script uses it.

    Args:
        columns: Title -> one picture ``[H, W, 3]`` per sample. Pictures may differ in size; they
            are scaled to one cell.
        captions: One line under every sample's row, such as its name and its score.
        legend: Row of a label map whose colours are explained below.
        ids: Class ids that occur, any shape; needed with ``legend``.

    Raises:
        ValueError: No columns, or columns of unequal length.
    """
    counts = {len(pictures) for pictures in columns.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError("a prediction grid needs columns of one length, at least one sample")
    (rows,) = counts
    height, width = next(iter(columns.values()))[0].shape[:2]
    scale = max(1, -(-MIN_CELL // max(height, width)))
    cell = (width * scale, height * scale)
    line = 2 * _CAPTION if captions else 0
    size = (
        2 * MARGIN + len(columns) * (cell[0] + GUTTER) - GUTTER,
        2 * MARGIN + 2 * _TITLE + rows * (cell[1] + GUTTER + line) - GUTTER,
    )
    image = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(image)
    for c, (title, pictures) in enumerate(columns.items()):
        x = MARGIN + c * (cell[0] + GUTTER)
        draw.text((x, MARGIN + _TITLE), title, INK, font(_TITLE), anchor="ls")
        for r, picture in enumerate(pictures):
            y = MARGIN + 2 * _TITLE + r * (cell[1] + GUTTER + line)
            resized = Image.fromarray(picture).resize(cell, Image.Resampling.NEAREST)
            image.paste(resized, (x, y))
    for r, caption in enumerate(captions):
        y = MARGIN + 2 * _TITLE + r * (cell[1] + GUTTER + line) + cell[1] + 1.3 * _CAPTION
        draw.text((MARGIN, y), caption, FADED, font(_CAPTION), anchor="ls")
    if legend is None or ids is None:
        return image
    return stack([image, draw_legend(legend, ids, MARGIN, _CAPTION, image.width)])
