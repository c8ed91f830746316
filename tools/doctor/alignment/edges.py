"""Edge features: strength and orientation of edges on a small grid.

Photos, depth, labels and normals of one view have their edges in common. Features are
``[n, 3, side, side]``: strength, and strength times cosine and sine of twice the gradient angle,
which makes dark-to-bright and bright-to-dark edges equal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from multimae.images.pixels import Array, Pixels, storage_dtype
from multimae.specs.modalities import Modality
from tools.doctor.files.file_records import is_scalar_map

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


def downsample(pixels: Pixels, modality: Modality, side: int) -> Floats:
    """Average an image over the cells of a grid, ``[C, side, side]``.

    Class ids are mapped to fixed colours first: averages of ids are meaningless.
    """
    if modality.is_labels:
        assert isinstance(pixels, np.ndarray)
        coloured = Image.fromarray((pixels & 255).astype(np.uint8, copy=False))
        coloured.putpalette(_ID_COLOURS)
        return _planes(coloured.convert("RGB"), side)
    if is_scalar_map(modality):
        return _downsample_scalar(
            np.asarray(pixels), int(np.iinfo(storage_dtype(modality)).max), side
        )
    if (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.shape[2:] in ((), (3,))
    ):
        pixels = Image.fromarray(pixels)
    if isinstance(pixels, Image.Image):
        return _planes(pixels, side)
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    values = np.nan_to_num(channels.astype(np.float32), posinf=0, neginf=0)
    if modality.no_data is not None:
        values[channels == modality.no_data] = 0
    return np.stack([_box(values[..., c], side) for c in range(values.shape[2])])


def edge_features(pictures: Floats, modality: Modality) -> Floats:
    """Edge features ``[n, 3, side, side]`` of small images ``[n, C, side, side]`` of one modality.

    Scalar maps use second derivatives: a crease in depth is an edge, a slope is not. The outermost
    cells, which lack a neighbour, copy the features of the next cell.
    """
    left, right = pictures[:, :, 1:-1, :-2], pictures[:, :, 1:-1, 2:]
    above, below = pictures[:, :, :-2, 1:-1], pictures[:, :, 2:, 1:-1]
    if is_scalar_map(modality):
        twice = 2 * pictures[:, :, 1:-1, 1:-1]
        x, y = left + right - twice, above + below - twice
        energy_x, energy_y = np.nan_to_num(_dot(x, x)), np.nan_to_num(_dot(y, y))
        cross = None
    else:
        x, y = right - left, below - above
        energy_x, energy_y, cross = _dot(x, x), _dot(y, y), _dot(x, y)
    energy = energy_x + energy_y
    strength = np.sqrt(energy)
    strength /= strength + (
        strength.mean(axis=(1, 2), keepdims=True) + _TINY
    )  # saturate strong edges
    energy += _TINY
    share = strength / energy
    out = np.zeros((len(pictures), 3, *pictures.shape[2:]), np.float32)
    inner = out[:, :, 1:-1, 1:-1]
    inner[:, 0] = strength
    energy_x -= energy_y
    np.multiply(energy_x, share, out=inner[:, 1])
    if cross is not None:
        share *= 2
        np.multiply(cross, share, out=inner[:, 2])
    # A border without edges would correlate in all images.
    out[..., 0], out[..., -1] = out[..., 1], out[..., -2]
    out[:, :, 0], out[:, :, -1] = out[:, :, 1], out[:, :, -2]
    return out


def normalize_features(edges: Floats) -> Floats:
    """Normalize features: dot products become correlations; images without edges become zero.

    Args:
        edges: Output of :func:`edge_features`; modified in place.
    """
    edges[:, 0] -= edges[:, 0].mean(axis=(1, 2), keepdims=True)
    flat = edges.reshape(len(edges), -1)
    norm = np.sqrt(np.einsum("nd,nd->n", flat, flat))
    flat *= np.where(norm > 1e-3, 1 / np.maximum(norm, 1e-3), 0)[:, None].astype(np.float32)
    return edges


def turn_features(edges: Floats, turn: tuple[bool, bool, bool]) -> Floats:
    """Features of the turned images."""
    swap, mirror_x, mirror_y = turn
    source = edges.swapaxes(2, 3) if swap else edges
    out: Floats = source[..., :: -1 if mirror_y else 1, :: -1 if mirror_x else 1].copy()
    if swap:
        out[:, 1] *= -1
    if mirror_x != mirror_y:
        out[:, 2] *= -1
    return out


def _dot(a: Floats, b: Floats) -> Floats:
    """Dot product over channels."""
    total = a[:, 0] * b[:, 0]
    for c in range(1, a.shape[1]):
        total += a[:, c] * b[:, c]
    return total


def _planes(image: Image.Image, side: int) -> Floats:
    small = np.asarray(_shrink(image, side), np.float32)
    return small[None] if small.ndim == 2 else np.ascontiguousarray(small.transpose(2, 0, 1))


def _box(values: Floats, side: int) -> Floats:
    return np.asarray(_shrink(Image.fromarray(values), side))


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Average over cells; `reduce` is faster where cells are whole pixels."""
    w, h = image.size
    if w >= side and h >= side and not (w % side or h % side):
        return image.reduce((w // side, h // side))
    return image.resize((side, side), Image.Resampling.BOX)


def _downsample_scalar(values: Array, top: int, side: int) -> Floats:
    """Average over valid pixels; NaN, which is no edge, where most are invalid."""
    invalid = (values == 0) | (values == top)
    if not invalid.any():
        return _box(values.astype(np.float32), side)[None]
    weight = _box((~invalid).astype(np.float32), side)
    sums = _box(np.where(invalid, 0, values).astype(np.float32), side)
    means = np.where(weight > 0.5, sums / np.maximum(weight, 0.5), np.nan)
    return np.asarray(means, np.float32)[None]


_ID_COLOURS = np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes()
