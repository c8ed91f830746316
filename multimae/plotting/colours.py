"""Colour map for scalar maps and palette for class ids."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""``[H, W, 3]``, sRGB."""

FloatArray = npt.NDArray[np.float64]

VOID_GREY = (52, 52, 58)
MASK_GREY = (222, 224, 228)

# Every 16th colour of "inferno" (Smith and van der Walt, CC0), which is uniform in lightness.
_INFERNO = """
    000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754
    d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4
"""

# Oklab, https://bottosson.github.io/posts/oklab/ (public domain).
_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def scalar_colours(x: npt.NDArray[np.floating], low: float, high: float) -> Picture:
    """Colour a scalar map from dark violet (``low``) to pale yellow (``high``).

    Args:
        x: ``[H, W]``. Values are clipped to the range; NaN and Inf are grey.
        low: Value of the darkest colour.
        high: Value of the brightest colour.

    Returns:
        ``[H, W, 3]``.
    """
    anchors = _hex_colours(_INFERNO)
    finite = np.isfinite(x)
    span = high - low if high > low else 1.0
    position = np.clip((np.where(finite, x, low) - low) / span, 0.0, 1.0)
    knots = np.linspace(0.0, 1.0, len(anchors))
    channels = [np.interp(position, knots, anchors[:, c]) for c in range(3)]
    picture: Picture = np.stack(channels, axis=-1).round().astype(np.uint8)
    picture[~finite] = VOID_GREY
    return picture


@cache
def _palette() -> Picture:
    """256 colours by farthest-point sampling in Oklab, a perceptual colour space."""
    candidates = _candidate_colours()
    lab = _oklab(candidates)
    reserved = _oklab(np.array([VOID_GREY, MASK_GREY]) / 255.0)
    distance = np.linalg.norm(lab[:, None] - reserved[None], axis=-1).min(axis=1)
    colours = [np.array(VOID_GREY) / 255.0]
    while len(colours) < 256:
        best = int(distance.argmax())
        colours.append(candidates[best])
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=-1))
    palette: Picture = (np.array(colours) * 255.0).round().astype(np.uint8)
    return palette


def label_palette(n: int) -> Picture:
    """Colours of class ids ``0..n-1``, ``[n, 3]``.

    Class 0, "void" in most data sets, is dark grey. Colours do not depend on ``n``; they repeat
    after 256 classes.
    """
    colours: Picture = _palette()[np.arange(n) % 256]
    return colours


def _candidate_colours() -> FloatArray:
    """SRGB colours in [0, 1] of moderate lightness and chroma, ``[candidates, 3]``."""
    hue = np.arange(48) * (2 * np.pi / 48)
    grid = np.meshgrid(
        [0.48, 0.55, 0.62, 0.69, 0.76, 0.83, 0.89], [0.04, 0.06, 0.08, 0.10, 0.12], hue
    )
    lightness, chroma, angle = (axis.ravel() for axis in grid)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    lms = (lab @ np.linalg.inv(_LMS_TO_LAB).T) ** 3
    linear = lms @ np.linalg.inv(_RGB_TO_LMS).T
    inside = ((linear >= 0.0) & (linear <= 1.0)).all(axis=-1)
    linear = linear[inside]
    return np.asarray(
        np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    )


def _oklab(rgb: FloatArray) -> FloatArray:
    """Oklab coordinates of sRGB colours in [0, 1], ``[..., 3]``."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T)


def _hex_colours(text: str) -> FloatArray:
    return np.array([list(bytes.fromhex(code)) for code in text.split()], dtype=np.float64)
