"""A labelled picture grid of what a model reconstructs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from multimae.modalities import Modality
from utils.colours import MASK_GREY, Picture, label_palette
from utils.pictures import to_picture, unnormalize_patches

COLUMNS = (
    ("input", "visible patches"),
    ("masked", "filled in"),
    ("prediction", "all patches"),
    ("truth", ""),
)
MIN_CELL = 224

WHITE, INK, FADED = (255, 255, 255), (28, 30, 36), (122, 126, 136)
MARGIN, GUTTER = 20, 4
_BLOCK_GAP = 26

Box = tuple[int, int]


def reconstruction_grid(
    truth: Mapping[str, Tensor],
    preds: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    modalities: Sequence[Modality],
    patch_size: int,
    max_rows: int = 6,
) -> Image.Image:
    """Samples as blocks of ``input | masked | prediction | truth``, one line per modality.

    ``masked`` is the usual MAE picture: visible patches from the truth, the others predicted.
    A modality without a mask was not an input: its input is empty and all of it is predicted.

    Args:
        truth: Batches in model space, ``[B, C, h, w]`` or ids ``[B, h, w]``, by modality.
        preds: Predictions by modality, ``[B, C, h, w]`` or logits ``[B, K, h, w]``. A ``norm_pix``
            prediction is brought back with the truth's statistics.
        masks: ``[B, N]`` by modality, 1 = masked.
        modalities: What to show, in this order. Those with a ``source`` take its truth and mask.
        patch_size: The model's patch side in full-resolution pixels.
        max_rows: Largest number of samples shown.

    Raises:
        ValueError: Nothing to show.
    """
    count = min([max_rows] + [len(preds[m.name]) for m in modalities])
    if count < 1 or not modalities:
        raise ValueError("a reconstruction grid needs at least one sample and one modality")
    blocks = [
        [
            _tiles(
                truth[m.data_name][i],
                preds[m.name][i],
                masks[m.data_name][i] if m.data_name in masks else None,
                m,
                patch_size,
            )
            for m in modalities
        ]
        for i in range(count)
    ]
    height, width = blocks[0][0][0].shape[:2]
    scale = 2 if width < MIN_CELL else 1
    layout = _Layout((scale * width, scale * height), len(modalities), min(2, count))
    grid = _draw_blocks(blocks, modalities, layout)
    legends = [
        draw_legend(
            m,
            truth[m.data_name][:count].cpu().numpy(),
            MARGIN + layout.label,
            layout.text,
            grid.width,
        )
        for m in modalities
        if m.is_labels
    ]
    return stack([grid, *legends])


def _tiles(
    truth: Tensor, pred: Tensor, mask: Tensor | None, m: Modality, patch_size: int
) -> list[Picture]:
    """The four pictures of one sample and modality."""
    patch = max(1, (m.patch_size or patch_size) // m.stride)
    if m.norm_pix:
        pred = unnormalize_patches(pred.cpu(), truth.cpu(), patch)
    full = to_picture(pred, m, truth)
    target = to_picture(truth, m, truth)
    hidden = np.ones(target.shape[:2], dtype=bool)
    if mask is not None:
        side = patch * m.stride
        cells = mask.cpu().numpy().astype(bool).reshape(-1, target.shape[1] // side)
        hidden = cells.repeat(side, axis=0).repeat(side, axis=1)
    seen = np.where(hidden[..., None], np.array(MASK_GREY, dtype=np.uint8), target)
    filled = np.where(hidden[..., None], full, target)
    return [seen, filled, full, target]


@dataclass(frozen=True)
class _Layout:
    """Where things go, in pixels."""

    cell: Box  # width, height
    rows: int  # modalities
    across: int  # blocks side by side

    @property
    def text(self) -> int:
        """Font size: wide pictures are looked at from further away."""
        return 18 if self.across == 1 else 26

    @property
    def header(self) -> int:
        return int(2.6 * self.text)

    @property
    def label(self) -> int:
        """Width of the modality's name beside its row."""
        return int(1.6 * self.text)

    @property
    def block(self) -> Box:
        width = self.label + len(COLUMNS) * (self.cell[0] + GUTTER) - GUTTER
        return width, self.rows * (self.cell[1] + GUTTER) - GUTTER

    def origin(self, index: int) -> Box:
        """Upper left corner of a sample's block."""
        down, across = divmod(index, self.across)
        return (
            MARGIN + across * (self.block[0] + _BLOCK_GAP),
            MARGIN + self.header + down * (self.block[1] + _BLOCK_GAP),
        )

    def canvas(self, blocks: int) -> Box:
        x, y = self.origin(self.across - 1)[0], self.origin(blocks - 1)[1]
        return x + self.block[0] + MARGIN, y + self.block[1] + MARGIN


def _draw_blocks(
    blocks: Sequence[Sequence[Sequence[Picture]]], modalities: Sequence[Modality], layout: _Layout
) -> Image.Image:
    """Compose ``blocks[sample][modality][column]``."""
    image = Image.new("RGB", layout.canvas(len(blocks)), WHITE)
    draw = ImageDraw.Draw(image)
    for i, block in enumerate(blocks):
        left, top = layout.origin(i)
        for r, (m, tiles) in enumerate(zip(modalities, block, strict=True)):
            y = top + r * (layout.cell[1] + GUTTER)
            _vertical_text(image, m.name, (left, y), layout)
            for c, tile in enumerate(tiles):
                x = left + layout.label + c * (layout.cell[0] + GUTTER)
                resized = Image.fromarray(tile).resize(layout.cell, Image.Resampling.NEAREST)
                image.paste(resized, (x, y))
                if i < layout.across and r == 0:
                    _column_title(draw, (x, y), layout.text, *COLUMNS[c])
    return image


def _column_title(
    draw: ImageDraw.ImageDraw, corner: Box, size: int, title: str, subtitle: str
) -> None:
    x, y = corner
    draw.text((x, y - 0.5 * size), title, INK, font(size), anchor="ls")
    indent = font(size).getlength(title + "  ")
    draw.text((x + indent, y - 0.5 * size), subtitle, FADED, font(0.72 * size), anchor="ls")


def _vertical_text(image: Image.Image, text: str, corner: Box, layout: _Layout) -> None:
    """Write ``text`` upwards, centred beside a row of pictures."""
    height = layout.cell[1]
    strip = Image.new("RGB", (height, layout.label), WHITE)
    middle = (height // 2, layout.label // 2 - 2)
    ImageDraw.Draw(strip).text(middle, text, INK, font(layout.text), anchor="mm")
    image.paste(strip.rotate(90, expand=True), corner)


def draw_legend(
    m: Modality, ids: npt.NDArray[np.integer], start: int, size: int, width: int
) -> Image.Image:
    """Colour squares and names of the classes in ``ids``, most frequent first, wrapped.

    Args:
        m: Row of the label map.
        ids: Class ids that occur; those out of range are left out.
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


def stack(images: Sequence[Image.Image]) -> Image.Image:
    """Put images of one width under one another."""
    out = Image.new("RGB", (images[0].width, sum(i.height for i in images)), WHITE)
    y = 0
    for image in images:
        out.paste(image, (0, y))
        y += image.height
    return out


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all pictures."""
    return ImageFont.load_default(size=size)
