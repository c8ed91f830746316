"""Font, colours, legends and colour scales of picture grids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from multimae.plotting.colours import label_palette, scalar_colours
from multimae.specs.modalities import Modality

MIN_CELL = 224

WHITE, INK, FADED = (255, 255, 255), (28, 30, 36), (122, 126, 136)
MARGIN, GUTTER = 20, 4

_BAR = 8  # length of a scale, in font sizes


def draw_legend(
    m: Modality, ids: npt.NDArray[np.integer], start: int, size: int, width: int
) -> Image.Image:
    """Legend of the classes in ``ids``, most frequent first, with line breaks.

    Args:
        m: Label modality.
        ids: Class ids; those out of range are ignored.
        start: Left edge of the text, pixels.
        size: Font size.
        width: Width of the result, pixels.
    """
    face, square, line = font(0.8 * size), int(0.9 * size), int(1.4 * size)
    values, counts = np.unique(ids[(ids >= 0) & (ids < m.num_classes)], return_counts=True)
    entries = []
    x, y = start, 0
    for value in values[np.argsort(-counts, kind="stable")].tolist():
        name = m.class_names[value] if value < len(m.class_names) else str(value)
        advance = int(1.4 * square + face.getlength(name)) + square
        if x + advance > width - MARGIN and x > start:
            x, y = start, y + line
        entries.append((x, y, value, name))
        x += advance
    image = Image.new("RGB", (width, y + line + MARGIN), WHITE)
    draw = ImageDraw.Draw(image)
    palette = label_palette(m.num_classes)
    for left, top, value, name in entries:
        corners = (left, top, left + square - 1, top + square - 1)
        draw.rectangle(corners, fill=tuple(palette[value].tolist()))
        draw.text((left + 1.4 * square, top + square / 2), name, INK, face, anchor="lm")
    return image


def draw_scale(m: Modality, start: int, size: int, width: int) -> Image.Image:
    """Colour scale of a scalar modality.

    Args:
        m: Scalar modality.
        start: Left edge, pixels.
        size: Font size.
        width: Width of the result, pixels.
    """
    face, height, line = font(0.8 * size), int(0.9 * size), int(1.4 * size)
    ramp = scalar_colours(np.linspace(0.0, 1.0, _BAR * size)[None].repeat(height, 0), 0.0, 1.0)
    image = Image.new("RGB", (width, line + MARGIN), WHITE)
    image.paste(Image.fromarray(ramp), (start, 0))
    text = f"{m.name}, low to high: the 2nd to 98th percentile of each truth"
    x = start + ramp.shape[1] + 0.7 * height
    ImageDraw.Draw(image).text((x, height / 2), text, INK, face, anchor="lm")
    return image


def stack(images: Sequence[Image.Image]) -> Image.Image:
    """Stack images of equal width vertically."""
    out = Image.new("RGB", (images[0].width, sum(i.height for i in images)), WHITE)
    y = 0
    for image in images:
        out.paste(image, (0, y))
        y += image.height
    return out


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all pictures."""
    return ImageFont.load_default(size=size)
