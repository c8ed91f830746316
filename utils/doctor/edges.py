"""Where the edges of a picture are and how they run, on a small grid.

Edges are what photographs, depth, labels and normals of one view have in common. Features are
``[n, 3, side, side]``: strength, and strength times cosine and sine of twice the angle of the
gradient, so that an edge from dark to bright counts like one from bright to dark.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from multimae.images import Array, Pixels, storage_dtype
from multimae.modalities import Modality
from utils.doctor.records import is_scalar_map

Floats = npt.NDArray[np.float32]
_TINY = np.float32(1e-12)
# The elements of the square's symmetry group: swap axes first, then mirror x, then mirror y.
TURNS: dict[str, tuple[bool, bool, bool]] = {
    "flipped left-right": (False, True, False),
    "flipped top-bottom": (False, False, True),
    "turned by 180 degrees": (False, True, True),
    "turned by 90 degrees to the left": (True, False, True),
    "turned by 90 degrees to the right": (True, True, False),
    "transposed": (True, False, False),
    "transposed and turned by 180 degrees": (True, True, True),
}
_LEFT, _RIGHT = "turned by 90 degrees to the left", "turned by 90 degrees to the right"
INVERSE = {_LEFT: _RIGHT, _RIGHT: _LEFT}


def reduce(pixels: Pixels, row: Modality, side: int) -> Floats:
    """A small version ``[C, side, side]`` of one image, averaged over each cell.

    Class ids become fixed colours first: averages of ids would mean nothing.
    """
    if row.is_labels:
        assert isinstance(pixels, np.ndarray)
        coloured = Image.fromarray((pixels & 255).astype(np.uint8, copy=False))
        coloured.putpalette(_ID_COLOURS)
        return _planes(coloured.convert("RGB"), side)
    if is_scalar_map(row):
        return _reduce_scalar(np.asarray(pixels), int(np.iinfo(storage_dtype(row)).max), side)
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8:
        pixels = Image.fromarray(pixels)
    if isinstance(pixels, Image.Image):
        return _planes(pixels, side)
    return _box(pixels.astype(np.float32), side)[None]


def features(pictures: Floats, row: Modality) -> Floats:
    """Features ``[n, 3, side, side]`` of small pictures ``[n, C, side, side]`` of one modality.

    Of scalar maps the second derivative counts: slopes of depth are no edges, creases are.
    """
    if is_scalar_map(row):
        xx, yy = np.zeros_like(pictures), np.zeros_like(pictures)
        xx[..., 1:-1] = pictures[..., 2:] - 2 * pictures[..., 1:-1] + pictures[..., :-2]
        yy[:, :, 1:-1] = pictures[:, :, 2:] - 2 * pictures[:, :, 1:-1] + pictures[:, :, :-2]
        energy_x, energy_y = (np.nan_to_num(_dot(d, d)) for d in (xx, yy))
        cross = np.zeros_like(energy_x)
    else:
        x, y = np.zeros_like(pictures), np.zeros_like(pictures)
        np.subtract(pictures[..., 2:], pictures[..., :-2], out=x[..., 1:-1])
        np.subtract(pictures[:, :, 2:], pictures[:, :, :-2], out=y[:, :, 1:-1])
        energy_x, energy_y = _dot(x, x), _dot(y, y)
        cross = _dot(x, y)
    energy = energy_x + energy_y
    strength = np.sqrt(energy)
    usual = strength.mean(axis=(1, 2), keepdims=True)
    strength = strength / (strength + usual + _TINY)  # no edge outweighs all others
    share = strength / (energy + _TINY)
    out = np.stack([strength, (energy_x - energy_y) * share, 2 * cross * share], axis=1)
    # A frame without edges would be what all pictures have in common.
    out[..., 0], out[..., -1] = out[..., 1], out[..., -2]
    out[:, :, 0], out[:, :, -1] = out[:, :, 1], out[:, :, -2]
    return out


def normalised(edges: Floats) -> Floats:
    """Features whose dot product is their correlation; zero where a picture has no edges."""
    centred = edges.copy()
    centred[:, 0] -= centred[:, 0].mean(axis=(1, 2), keepdims=True)
    norm = np.sqrt((centred**2).sum(axis=(1, 2, 3), keepdims=True))
    return np.asarray(np.where(norm > 1e-3, centred / np.maximum(norm, 1e-3), 0), np.float32)


def turned(edges: Floats, turn: tuple[bool, bool, bool]) -> Floats:
    """Features of the pictures as they would be if the pictures were turned so."""
    swap, mirror_x, mirror_y = turn
    source = edges.swapaxes(2, 3) if swap else edges
    out: Floats = source[..., :: -1 if mirror_y else 1, :: -1 if mirror_x else 1].copy()
    if swap:
        out[:, 1] *= -1
    if mirror_x != mirror_y:
        out[:, 2] *= -1
    return out


def _dot(a: Floats, b: Floats) -> Floats:
    """Sum over the channels of the product."""
    return np.asarray(np.einsum("ncyx,ncyx->nyx", a, b))


def _planes(image: Image.Image, side: int) -> Floats:
    small = np.asarray(_shrink(image, side), np.float32)
    return small[None] if small.ndim == 2 else np.ascontiguousarray(small.transpose(2, 0, 1))


def _box(values: Floats, side: int) -> Floats:
    return np.asarray(_shrink(Image.fromarray(values), side))


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Averages over cells; whole pixels are averaged faster than parts of pixels."""
    w, h = image.size
    if w >= side and h >= side and not (w % side or h % side):
        return image.reduce((w // side, h // side))
    return image.resize((side, side), Image.Resampling.BOX)


def _reduce_scalar(values: Array, top: int, side: int) -> Floats:
    """Averages over valid pixels; nan, which is no edge, where most are invalid."""
    invalid = (values == 0) | (values == top)
    if not invalid.any():
        return _box(values.astype(np.float32), side)[None]
    weight = _box((~invalid).astype(np.float32), side)
    sums = _box(np.where(invalid, 0, values).astype(np.float32), side)
    means = np.where(weight > 0.5, sums / np.maximum(weight, 0.5), np.nan)
    return np.asarray(means, np.float32)[None]


_ID_COLOURS = np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes()
