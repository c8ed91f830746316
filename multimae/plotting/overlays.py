"""Pictures of predictions over the photo they were made from, with a legend."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from multimae.images.pixels import Pixels
from multimae.plotting.colours import VOID_GREY, Picture, label_palette, scalar_colours
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
from multimae.plotting.pictures import to_picture, with_void
from multimae.specs.modalities import Modality

MAX_SIDE = 1600
"""Largest side of the photo in a picture."""
_OPACITY = 0.55
_BAR_COLOUR = (46, 98, 178)
_TRACK = (232, 234, 238)
_MIN_WIDTH = 480
_MIN_SHARE = 0.001  # of the pixels, of a class in a legend
_NAME = 13  # font size of names in a picture
NO_CLASS = -1


def backdrop(pixels: Pixels, modality: Modality) -> Picture:
    """An image as a picture of at most :data:`MAX_SIDE`, ``[H, W, 3]``."""
    if modality.is_photo:
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image = image.convert("RGB")
    else:
        values = np.array(pixels)
        if modality.is_labels:
            x = torch.from_numpy(values.astype(np.int64))
        else:
            x = torch.from_numpy(values.astype(np.float32)) / modality.max_value
            x = x[None] if x.ndim == 2 else x.permute(2, 0, 1)
            mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (modality.mean, modality.std))
            x = (x - mean) / std
        image = Image.fromarray(to_picture(x, dataclasses.replace(modality, stride=1)))
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    scale = max(1, _MIN_WIDTH // image.width)
    if scale > 1:
        size = (image.width * scale, image.height * scale)
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def blend_labels(
    photo: Picture, ids: npt.NDArray[np.integer], target: Modality, first_colour: int = 1
) -> Picture:
    """Classes over a photo, outlined; arguments as for :func:`label_overlay`."""
    height, width = photo.shape[:2]
    shown = nearest(ids, (height, width)) + 1
    colours = label_palette(target.num_classes + 1)[(shown - 1 + first_colour).clip(0)]
    colours = colours.astype(np.float32)
    blended = photo * (1 - _OPACITY) + colours * _OPACITY
    blended[shown == 0] = photo[shown == 0] * 0.35 + 0.1 * np.array(VOID_GREY)
    edge = np.zeros((height, width), bool)
    line = max(1, round(max(height, width) / 800))
    edge[:, line:] |= shown[:, line:] != shown[:, :-line]
    edge[line:] |= shown[line:] != shown[:-line]
    blended[edge] = 0.25 * blended[edge] + 0.75 * 255
    picture: Picture = blended.clip(0, 255).astype(np.uint8)
    return picture


def named_overlay(
    photo: Picture, ids: npt.NDArray[np.integer], target: Modality, first_colour: int = 1
) -> Picture:
    """Classes over a photo, outlined, with the names of those that are large enough.

    Arguments are those of :func:`label_overlay`. Small photos are enlarged so that names can be
    read, to a side of at least :data:`multimae.plotting.drawing.MIN_CELL`.
    """
    scale = max(1, -(-MIN_CELL // max(photo.shape[:2])))
    large = photo.repeat(scale, axis=0).repeat(scale, axis=1)
    blended = blend_labels(large, ids, target, first_colour)
    image = Image.fromarray(blended)
    draw, face = ImageDraw.Draw(image), font(_NAME)
    height, width = blended.shape[:2]
    for value in np.unique(ids[ids >= 0]).tolist():
        name = target.class_names[value] if target.class_names else str(value)
        y, x, depth = _deepest(ids == value)
        y, x = (y + 0.5) * height / ids.shape[0], (x + 0.5) * width / ids.shape[1]
        half = face.getlength(name) / 2 + 2
        if depth * height / ids.shape[0] >= _NAME and 2 * half <= width:
            at = (float(np.clip(x, half, width - half)), y)
            draw.text(at, name, WHITE, face, anchor="mm", stroke_width=2, stroke_fill=INK)
    return np.array(image)


def _deepest(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """Row and column of the pixel farthest from the outside of a mask, and its distance."""
    inside, depth = np.pad(mask, 1), 0
    while True:
        rows, columns = np.nonzero(inside)
        eroded = inside.copy()
        for axis in (0, 1):
            for shift in (-1, 1):
                eroded &= np.roll(inside, shift, axis)
        depth += 1
        if not eroded.any():
            middle = len(rows) // 2
            return int(rows[middle]) - 1, int(columns[middle]) - 1, depth
        inside = eroded


def label_overlay(
    photo: Picture, ids: npt.NDArray[np.integer], target: Modality, first_colour: int = 1
) -> Image.Image:
    """Classes over a photo, outlined, with their names and shares.

    Args:
        photo: ``[H, W, 3]``.
        ids: Class ids of any size with the same proportions; -1 where there is none.
        target: Label modality.
        first_colour: Number of the colour of class 0; colour 0 is that of void.
    """
    height, width = photo.shape[:2]
    shown = nearest(ids, (height, width)) + 1
    row = with_void(target) if first_colour else target
    picture = Image.fromarray(blend_labels(photo, ids, target, first_colour))
    counts = np.bincount(ids[ids >= 0].ravel(), minlength=target.num_classes)
    shares = counts / max(1, counts.sum())
    names = [target.class_names[i] if target.class_names else str(i) for i in range(len(counts))]
    titled = tuple(f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True))
    row = dataclasses.replace(row, class_names=("void", *titled) if first_colour else titled)
    listed = shown[np.isin(shown, np.flatnonzero(shares >= _MIN_SHARE) + 1)] - 1 + first_colour
    size = _text_size(width)
    return stack([picture, _gap(width, size), draw_legend(row, listed, MARGIN, size, width)])


def value_overlay(
    photo: Picture, values: npt.NDArray[np.floating], name: str, unit: str
) -> Image.Image:
    """A photo beside a map of values, with a scale.

    Args:
        photo: ``[H, W, 3]``.
        values: ``[h, w]`` or ``[h, w, C]``, NaN where there is none. Three channels are shown as
            colours from 0 to 1, others by their mean.
        name: Title of the scale.
        unit: Unit of the values.
    """
    height, width = photo.shape[:2]
    values = nearest(values, (height, width))
    size = _text_size(2 * width)
    canvas = Image.new("RGB", (2 * width + GUTTER, height), WHITE)
    canvas.paste(Image.fromarray(photo), (0, 0))
    if values.ndim == 3 and values.shape[2] == 3:
        picture = (np.nan_to_num(values).clip(0, 1) * 255).round().astype(np.uint8)
        canvas.paste(Image.fromarray(picture), (width + GUTTER, 0))
        return canvas
    scalar = values if values.ndim == 2 else values.mean(axis=2)
    known = scalar[np.isfinite(scalar)]
    low, high = np.percentile(known, [2, 98]).tolist() if known.size else (0.0, 1.0)
    canvas.paste(Image.fromarray(scalar_colours(scalar, low, high)), (width + GUTTER, 0))
    return stack(
        [canvas, _gap(canvas.width, size), _scale(name, low, high, unit, size, canvas.width)]
    )


def class_overlay(
    photo: Picture, names: Sequence[str], probabilities: Sequence[float]
) -> Image.Image:
    """A photo above the most probable classes, with bars."""
    width = photo.shape[1]
    size = _text_size(width)
    face, line = font(size), int(1.7 * size)
    panel = Image.new("RGB", (width, len(names) * line + MARGIN), WHITE)
    draw = ImageDraw.Draw(panel)
    text = min(max(face.getlength(name) for name in names) + size, 0.6 * width)
    for i, (name, share) in enumerate(zip(names, probabilities, strict=True)):
        y = MARGIN // 2 + i * line + line // 2
        draw.text((MARGIN, y), name, INK if i == 0 else FADED, face, anchor="lm")
        left, right = MARGIN + text, width - MARGIN - 4 * size
        top, bottom = y - 0.35 * size, y + 0.35 * size
        if right > left:
            draw.rectangle((left, top, right, bottom), fill=_TRACK)
            draw.rectangle((left, top, left + share * (right - left), bottom), fill=_BAR_COLOUR)
        draw.text((width - MARGIN, y), f"{share:.1%}", INK, face, anchor="rm")
    return stack([Image.fromarray(photo), panel])


def _scale(name: str, low: float, high: float, unit: str, size: int, width: int) -> Image.Image:
    """A bar of colours with the values at its ends and in its middle."""
    face, bar, height = font(0.85 * size), min(width - 2 * MARGIN, 24 * size), int(0.9 * size)
    ramp = scalar_colours(np.linspace(0.0, 1.0, bar)[None].repeat(height, 0), 0.0, 1.0)
    image = Image.new("RGB", (width, height + int(3.2 * size)), WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 0), name, INK, face, anchor="lt")
    image.paste(Image.fromarray(ramp), (MARGIN, int(1.2 * size)))
    y = int(1.2 * size) + height + 0.25 * size
    for share, anchor in ((0.0, "lt"), (0.5, "mt"), (1.0, "rt")):
        text = f"{low + share * (high - low):.3g} {unit}".rstrip()
        draw.text((MARGIN + share * bar, y), text, FADED, face, anchor=anchor)
    return image


def _text_size(width: int) -> int:
    return int(np.clip(width / 40, 14, 30))


def _gap(width: int, size: int) -> Image.Image:
    return Image.new("RGB", (width, size // 2), WHITE)


def nearest(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Resize ``[h, w, ...]`` to ``size``, repeating or dropping values."""
    rows, columns = (
        (np.arange(side) * 2 + 1) * stored // (2 * side)
        for side, stored in zip(size, values.shape[:2], strict=True)
    )
    resized: npt.NDArray[Any] = values[rows][:, columns]
    return resized
