"""Colour map for scalar maps and palette for class ids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""``[H, W, 3]``, sRGB."""

VOID_GREY = (52, 52, 58)
MASK_GREY = (222, 224, 228)
PADDING_GREY = MASK_GREY

# Every 16th colour of "inferno" (Smith and van der Walt, CC0), which is uniform in lightness.
_INFERNO = """
    000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754
    d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4
"""

# Farthest-point sampling of sRGB colours of moderate lightness and chroma in Oklab, away from
# VOID_GREY, which comes first, and MASK_GREY: the first n colours are as distinct as n can be.
_PALETTE = """
    34343a a97e1a 3d73b6 cb7db6 1eb39e 943c51 197037 88b0fd ed9b66 bdd377 51dfdf f4abec 7e5403
    704891 c46664 8a819b 45636f a0b9a4 669649 2994ae ecb9b1 757358 93f3bc bd8f81 c0a6cc fcd58d
    a9cced 9d538a f290a3 9e8ddf 9ca166 7aa1bd 2d817a a15d3e 5dc1db c6b150 a16fb8 83c57d 737807
    735553 4458a1 7462b1 6a81ce 9aeaf8 768d7a 65728a cc8c40 a3d4be f5cafa a47c65 59633b 42cab4
    33854a fbb86e 8f6370 17adcc aa91b5 d5a39b db7b83 d2c89c d0e3b9 369a80 6dae68 cfbcf4 ac728b
    78a892 669ee4 dc95d5 944027 873f75 bd9ff2 8cdd9e fecfbb ab5065 63567b 127d9d 176490 8e6b20
    dce383 98b3d7 be6f3b 176c5f feacc5 6df4e9 8d894e 836392 cfaa77 5e8bb4 7ad5f8 d7bed4 aab97f
    c387a0 b09b38 da9cb6 8f97cd 5d7c4c 59aab1 804a62 a3edd5 887abd 62bbf5 d8825a b468a0 f49383
    b784ce 68e1bf 4a690a b8ed9c e6c465 fecbd9 a59b80 6d8c99 83bdc2 666005 feb391 666da0 5a796f
    7fc2a4 8c694e 9c7d82 bee4df b99462 338fc7 92a64b 834e36 bf6583 888d2a 9d76a3 0c6a76 b1d49f
    467a89 abaae3 beaf95 6a9366 eab4da 455d8b 429595 4a769e 86d7de e5d3ed b17370 78743a 725936
    dda552 3a6a45 486558 a7bc61 8c5aa1 ebbe8f eadaae c7def4 8f866b c6a7b3 b1919a 7d6a80 7fa3a6
    aacfd6 959ab5 30c7d2 399c69 5da3d3 a35e16 58af8c 605291 8d4443 9e5877 ae7a3f a45856 288463
    78497e c99edd d1cb7d d28376 b3c5fc 7fa87b dcc2ae c0cdb1 c0c5e2 aeaeca 6b5668 886964 7885ab
    285e9f d77a98 a9a6fa c36a4f e791c2 904605 68c893 8f3d64 1479b0 7df5d2 5e7e27 e5affd 68f2fd
    a5d989 7e97e6 5188cd 576cb7 54dcf2 f0db7b c09337 9a861b b6eabf 94bf90 bfb276 daa382 e9b8c6
    ffd1a2 905f82 036f4f c8878b 7cbadc 9e824c 91a189 555d75 99b6c7 f4d1cf 645e44 5f9282 edd6bf
    776a90 e2dea1 5fac9d 61a6c1 72c2ba 7c8d66 8bd9c9 b88ab3 c38e6d a390c6 6f5b21 587c5f df9da1
    2f6868 41617e 7a9ecd cf9fc9 f7b3b7 9e7993 b1e4f9 c9e3cd 7cb7ee 86dcb7 c8e8a0 e7b2ee 51b27e
    b96c7b 7880c2 ab553b 98aef1 e99b83 986528 75914d 446a2c 57651a
"""


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


def label_palette(n: int) -> Picture:
    """Colours of class ids ``0..n-1``, ``[n, 3]``.

    Class 0, "void" in most data sets, is dark grey. Colours do not depend on ``n``; they repeat
    after 256 classes.
    """
    colours: Picture = _hex_colours(_PALETTE).astype(np.uint8)[np.arange(n) % 256]
    return colours


def _hex_colours(text: str) -> npt.NDArray[np.float64]:
    return np.array([list(bytes.fromhex(code)) for code in text.split()], dtype=np.float64)
