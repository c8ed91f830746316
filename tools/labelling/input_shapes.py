"""Input sizes: few enough that images of many sizes fill batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

# Long over short side. Neighbours differ by less than 21 %: an image is distorted by half of that.
_RATIOS = (1.0, 7 / 6, 4 / 3, 3 / 2, 16 / 9, 2.1, 2.5, 3.0)
_DEFAULT_SIDE = 512


@dataclass(frozen=True)
class InputShapes:
    """How large a model wants its input.

    Attributes:
        short: Shorter side in pixels.
        multiple: Both sides are multiples of this.
        square: Every image is squashed into a square, as the model was made for.
    """

    short: int
    multiple: int
    square: bool

    def of(self, width: int, height: int) -> tuple[int, int]:
        """``(width, height)`` of the input for an image of that size."""
        ratio = max(width, height) / min(width, height)
        nearest = 1.0 if self.square else min(_RATIOS, key=lambda r: abs(math.log(r / ratio)))
        short, long = self._round(self.short), self._round(self.short * nearest)
        return (long, short) if width >= height else (short, long)

    def _round(self, side: float) -> int:
        return max(1, round(side / self.multiple)) * self.multiple


def input_shapes(processor: Any, multiple: int, short: int | None) -> InputShapes:
    """What a model's image processor says about sizes.

    Args:
        processor: Of transformers.
        multiple: Both sides must be multiples of this.
        short: Shorter side that the user wants, keeping the aspect ratio.
    """
    if short is not None:
        return InputShapes(short, multiple, square=False)
    size = getattr(processor, "size", None)
    shortest, longest, height, width = (
        getattr(size, key, None) for key in ("shortest_edge", "longest_edge", "height", "width")
    )
    if shortest:
        # Equal bounds: a square, for models whose position table knows no other size.
        return InputShapes(int(shortest), multiple, square=shortest == longest)
    if height and width:
        keeps = bool(getattr(processor, "keep_aspect_ratio", False))
        return InputShapes(int(min(height, width)), multiple, square=not keeps)
    return InputShapes(_DEFAULT_SIDE, multiple, square=False)
