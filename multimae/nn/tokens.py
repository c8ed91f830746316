"""Where each modality's tokens lie in the encoder's sequence.

The sequence is ``[tokens of modality 1 ... tokens of modality M, global tokens]``; a
:class:`TokenLayout` describes it to every decoder and head (the ``input_info`` of their forward).
"""

from __future__ import annotations

from dataclasses import dataclass

Size = tuple[int, int]


def as_size(value: int | Size) -> Size:
    """``value`` as (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


@dataclass(frozen=True)
class TokenSlice:
    """Tokens ``start .. stop-1`` of the sequence: one modality on a (rows, columns) grid."""

    start: int
    grid: Size

    @property
    def num_tokens(self) -> int:
        """Tokens of this modality."""
        return self.grid[0] * self.grid[1]

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + self.num_tokens


@dataclass(frozen=True)
class TokenLayout:
    """Layout of the full (unmasked) sequence.

    Attributes:
        image_size: (height, width) at full resolution, in pixels.
        slices: Modality name -> its slice, in sequence order.
        num_global_tokens: Global tokens behind the modalities' tokens.
    """

    image_size: Size
    slices: dict[str, TokenSlice]
    num_global_tokens: int

    @classmethod
    def from_grids(
        cls, image_size: Size, grids: dict[str, Size], num_global_tokens: int
    ) -> TokenLayout:
        """Lay the modalities' grids one after the other."""
        slices: dict[str, TokenSlice] = {}
        start = 0
        for name, grid in grids.items():
            slices[name] = TokenSlice(start, grid)
            start = slices[name].stop
        return cls(image_size, slices, num_global_tokens)

    @property
    def num_task_tokens(self) -> int:
        """Tokens of all modalities, global tokens not counted."""
        return sum(s.num_tokens for s in self.slices.values())
