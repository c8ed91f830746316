"""Labelled grid of reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from multimae.plotting.colours import MASK_GREY, Picture
from multimae.plotting.drawing import (
    FADED,
    GUTTER,
    INK,
    MARGIN,
    MIN_CELL,
    WHITE,
    draw_legend,
    draw_scale,
    font,
    stack,
)
from multimae.plotting.pictures import to_picture, unnormalize_patches
from multimae.specs.modalities import Modality

COLUMNS = (
    ("input", "visible patches"),
    ("masked", "filled in"),
    ("prediction", "all patches"),
    ("truth", ""),
)
_BLOCK_GAP = 26

Box = tuple[int, int]


def reconstruction_grid(
    truth: Mapping[str, Tensor],
    preds: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    modalities: Sequence[Modality],
    patch_size: int,
    max_rows: int = 6,
    *,
    restored: bool = False,
) -> Image.Image:
    """Draw samples as blocks of ``input | masked | prediction | truth``, one line per modality.

    ``masked`` shows the visible patches, with predictions elsewhere. A modality without a mask was
    not an input and is shown as fully masked.

    Args:
        truth: Ground truth by modality in model space, ``[B, C, h, w]`` or ids ``[B, h, w]``.
            Missing modalities are drawn grey.
        preds: Predictions by modality, ``[B, C, h, w]`` or logits ``[B, K, h, w]``.
        masks: ``[B, N]`` by modality, 1 = masked.
        modalities: Modalities to show, in this order. Those with a ``source`` use the ground truth
            and mask of that modality.
        patch_size: The model's patch side in full-resolution pixels.
        max_rows: Largest number of samples to show.
        restored: Whether ``norm_pix`` predictions have been de-normalised already.

    Raises:
        ValueError: No samples or no modalities.
    """
    count = min([max_rows] + [len(preds[m.name]) for m in modalities])
    if count < 1 or not modalities:
        raise ValueError("a reconstruction grid needs at least one sample and one modality")

    def cells(m: Modality, i: int) -> list[Picture]:
        known = truth[m.data_name][i] if m.data_name in truth else None
        mask = masks[m.data_name][i] if m.data_name in masks else None
        pred = preds[m.name][i]
        if m.norm_pix and known is not None and not restored:
            patch = max(1, (m.patch_size or patch_size) // m.stride)
            pred = unnormalize_patches(pred.cpu(), known.cpu(), patch)
        return tiles(known, pred, mask, m, patch_size)

    blocks = [[cells(m, i) for m in modalities] for i in range(count)]
    height, width = blocks[0][0][0].shape[:2]
    scale = 2 if width < MIN_CELL else 1
    layout = _Layout((scale * width, scale * height), len(modalities), min(2, count))
    grid = _draw_blocks(blocks, modalities, layout)
    geometry = (MARGIN + layout.label, layout.text, grid.width)
    legends = [_legend(m, truth, preds, count, geometry) for m in modalities]
    return stack([grid, *(legend for legend in legends if legend is not None)])


def _legend(
    m: Modality,
    truth: Mapping[str, Tensor],
    preds: Mapping[str, Tensor],
    count: int,
    geometry: tuple[int, int, int],
) -> Image.Image | None:
    """Legend of true and predicted classes, or colour scale; ``None`` for colour images."""
    if m.is_labels:
        known = [truth[m.data_name]] if m.data_name in truth else []
        maps = [*known, preds[m.name].argmax(dim=1)]
        ids = np.concatenate([ids[:count].cpu().numpy().ravel() for ids in maps])
        return draw_legend(m, ids, *geometry)
    return draw_scale(m, *geometry) if m.plot == "scalar" else None


def tiles(
    truth: Tensor | None, pred: Tensor, mask: Tensor | None, m: Modality, patch_size: int
) -> list[Picture]:
    """Pictures of one sample and modality: ``input | masked | prediction | truth``.

    Args:
        truth: ``[C, h, w]`` or ids ``[h, w]`` in model space; ``None``: grey pictures.
        pred: ``[C, h, w]`` or logits ``[K, h, w]``, in the space of ``truth``.
        mask: ``[N]``, 1 = masked; ``None``: fully masked.
        m: The modality.
        patch_size: The model's patch side in full-resolution pixels.
    """
    full = to_picture(pred, m, truth)
    grey = np.broadcast_to(np.array(MASK_GREY, dtype=np.uint8), full.shape).copy()
    if truth is None:
        return [grey, full, full, grey]
    target = to_picture(truth, m, truth)
    hidden = np.ones(target.shape[:2], dtype=bool)
    if mask is not None:
        side = max(1, (m.patch_size or patch_size) // m.stride) * m.stride
        cells = mask.cpu().numpy().astype(bool).reshape(-1, target.shape[1] // side)
        hidden = cells.repeat(side, axis=0).repeat(side, axis=1)
    seen = np.where(hidden[..., None], grey, target)
    filled = np.where(hidden[..., None], full, target)
    return [seen, filled, full, target]


@dataclass(frozen=True)
class _Layout:
    """Geometry of the grid, in pixels."""

    cell: Box  # width, height
    rows: int  # modalities
    across: int  # blocks per line

    @property
    def text(self) -> int:
        """Font size; larger for wide grids, which are displayed smaller."""
        return 18 if self.across == 1 else 26

    @property
    def small(self) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        """Font of subtitles."""
        return font(0.72 * self.text)

    @property
    def has_subtitles(self) -> bool:
        """Whether all fit beside their titles."""
        large, small = font(self.text), self.small
        widths = [large.getlength(f"{a}  ") + small.getlength(b) for a, b in COLUMNS]
        return max(widths) <= self.cell[0]

    @property
    def header(self) -> int:
        return int(2.6 * self.text)

    @property
    def label(self) -> int:
        """Width of the modality names, written vertically."""
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
                    _column_title(draw, (x, y), layout, *COLUMNS[c])
    return image


def _column_title(
    draw: ImageDraw.ImageDraw, corner: Box, layout: _Layout, title: str, subtitle: str
) -> None:
    """Write a title and, where columns are wide enough, its subtitle."""
    (x, y), size = corner, layout.text
    draw.text((x, y - 0.5 * size), title, INK, font(size), anchor="ls")
    if layout.has_subtitles:
        indent = font(size).getlength(title + "  ")
        draw.text((x + indent, y - 0.5 * size), subtitle, FADED, layout.small, anchor="ls")


def _vertical_text(image: Image.Image, text: str, corner: Box, layout: _Layout) -> None:
    """Write ``text`` vertically, centred on a line of pictures."""
    height = layout.cell[1]
    strip = Image.new("RGB", (height, layout.label), WHITE)
    middle = (height // 2, layout.label // 2 - 2)
    ImageDraw.Draw(strip).text(middle, text, INK, font(layout.text), anchor="mm")
    image.paste(strip.rotate(90, expand=True), corner)
