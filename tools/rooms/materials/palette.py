"""The materials a room is furnished with, drawn once per room so that they match."""

from __future__ import annotations

import colorsys
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tools.rooms.materials import patterns as tx
from tools.rooms.materials.textures import Materials

F64 = NDArray[np.float64]

# sRGB tones of common woods, from pale birch to dark wenge.
_WOODS = (
    (0.86, 0.74, 0.56),
    (0.78, 0.60, 0.40),
    (0.66, 0.45, 0.27),
    (0.52, 0.33, 0.19),
    (0.40, 0.24, 0.15),
    (0.31, 0.21, 0.16),
    (0.83, 0.80, 0.74),
)


def linear(rgb: tuple[float, float, float] | F64) -> F64:
    """Turn an sRGB colour in 0..1 into linear light."""
    return np.asarray(rgb, np.float64) ** 2.2


def hsv(h: float, s: float, v: float) -> F64:
    """Return the linear colour of a hue, saturation and value in 0..1."""
    return linear(colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0), 1), min(max(v, 0), 1)))


class Kit:
    """Random materials of one room.

    Args:
        rng: Source of all choices.
        mats: Table that the materials are added to.
    """

    def __init__(self, rng: np.random.Generator, mats: Materials) -> None:
        """Draw the accent hue and the main wood."""
        self.rng = rng
        self.mats = mats
        self.accent = float(rng.uniform(0, 1))
        self.wood_tone = linear(_WOODS[int(rng.integers(len(_WOODS)))])

    def uniform(self, low: float, high: float) -> float:
        """Return a number between low and high."""
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        """Return True with probability p."""
        return bool(self.rng.uniform() < p)

    def pick(self, *values: float) -> float:
        """Return one of the values."""
        return values[int(self.rng.integers(len(values)))]

    def paint(self, color: F64, gloss: float = 0.0) -> int:
        """Add a plain colour."""
        return self.mats.add(tx.SOLID, color, gloss=gloss)

    def color(self, sat: float = 0.5, val: float = 0.7) -> F64:
        """Return a colour of the room's scheme: its accent, two that go with it, or a neutral."""
        v = val * self.uniform(0.75, 1.15)
        if self.chance(0.3):
            return hsv(self.uniform(0.04, 0.13), self.uniform(0.03, 0.3), v)
        h = self.accent + self.pick(0.0, 0.0, 0.33, 0.5, 0.6) + self.uniform(-0.05, 0.05)
        return hsv(h, sat * self.uniform(0.5, 1.15), v)

    @cached_property
    def wood(self) -> int:
        """The wood that most furniture of the room is made of."""
        return self.new_wood(self.wood_tone)

    @cached_property
    def wood2(self) -> int:
        """A second wood."""
        return self.new_wood(linear(_WOODS[int(self.rng.integers(len(_WOODS)))]))

    def new_wood(self, tone: F64) -> int:
        """Add a wood of the given tone."""
        return self.mats.add(
            tx.GRAIN, tone * 1.08, tone * 0.78, params=(self.uniform(0, 1),), gloss=0.03
        )

    @cached_property
    def white(self) -> int:
        """White lacquer."""
        return self.paint(linear((0.9, 0.9, 0.88)), gloss=0.03)

    @cached_property
    def porcelain(self) -> int:
        """Glazed white."""
        return self.paint(linear((0.93, 0.94, 0.94)), gloss=0.06)

    @cached_property
    def metal(self) -> int:
        """Brushed steel."""
        return self.paint(linear((0.66, 0.67, 0.69)), gloss=0.14)

    @cached_property
    def dark(self) -> int:
        """Black plastic or iron."""
        return self.paint(linear((0.16, 0.16, 0.17)), gloss=0.03)

    @cached_property
    def linen(self) -> int:
        """Off-white cloth of sheets and pillows."""
        return self.mats.add(
            tx.WEAVE, linear((0.93, 0.91, 0.87)), linear((0.86, 0.85, 0.82)), params=(0.3, 0.02)
        )

    @cached_property
    def brass(self) -> int:
        """Warm metal."""
        return self.paint(linear((0.78, 0.62, 0.34)), gloss=0.2)

    @cached_property
    def green(self) -> int:
        """Leaves."""
        a = hsv(self.uniform(0.25, 0.38), 0.6, 0.5)
        return self.mats.add(tx.WEAVE, a, a * 0.6, params=(0.2, 0.05))

    @cached_property
    def pages(self) -> int:
        """Paper."""
        return self.paint(linear((0.93, 0.92, 0.87)))

    @cached_property
    def cardboard(self) -> int:
        """Packing cardboard."""
        a = linear((0.72, 0.56, 0.38))
        return self.mats.add(tx.GRAIN, a, a * 0.9, params=(0.4,))

    @cached_property
    def glow(self) -> int:
        """A lit lamp shade, in display units."""
        return self.mats.add(tx.SOLID, linear((1.0, 0.93, 0.78)), glow=0.92)

    @cached_property
    def mirror(self) -> int:
        """Silvered glass."""
        return self.mats.add(tx.SOLID, linear((0.25, 0.27, 0.28)), gloss=0.9)

    @cached_property
    def stone(self) -> int:
        """The worktop of counters and vanities."""
        v = self.uniform(0.25, 0.9)
        a = hsv(self.uniform(0.05, 0.15), 0.12, v)
        return self.mats.add(
            tx.BLOTCH,
            a,
            a * 0.75,
            a * 1.3 if v < 0.5 else a * 0.55,
            (self.uniform(0, 1), 0.35),
            0.06,
        )

    @cached_property
    def fabric(self) -> int:
        """The main upholstery."""
        return self.new_fabric()

    def new_fabric(self, sat: float = 0.45, val: float = 0.65) -> int:
        """Add a cloth: plain, striped, plaid, dotted or with an ornament."""
        a = self.color(sat, val)
        b = a * self.uniform(0.55, 0.8) if self.chance(0.6) else self.color(sat * 0.5, 0.9)
        style = int(self.rng.integers(8))
        seed = self.uniform(0, 1)
        if style == 0:
            share = self.uniform(0.3, 0.6)
            return self.mats.add(tx.STRIPES, a, b, b, (self.uniform(0.08, 0.25), share))
        if style == 1:
            return self.mats.add(tx.CHECKS, a, b, a * 0.5, (self.uniform(0.12, 0.3),))
        if style == 2:
            return self.mats.add(tx.DOTS, a, b, None, (self.uniform(0.1, 0.2), 0.25))
        if style == 3:
            return self.mats.add(tx.MOTIF, a, b, None, (self.uniform(0.2, 0.4),))
        return self.mats.add(tx.WEAVE, a, a * 0.82, None, (seed, self.uniform(0.012, 0.03)))

    @cached_property
    def front(self) -> int:
        """The fronts of cupboards: lacquer or wood."""
        if self.chance(0.45):
            return self.wood
        if self.chance(0.4):
            return self.white
        return self.paint(self.color(0.3, 0.75), gloss=0.03)

    def art(self) -> int:
        """Add a painting."""
        h = self.uniform(0, 1)
        c = [hsv(h + d, self.uniform(0.3, 0.8), self.uniform(0.5, 0.95)) for d in (0, 0.1, 0.55)]
        return self.mats.add(
            tx.ART, c[0], c[1], c[2], params=(self.uniform(0, 1), self.uniform(0, 1))
        )

    def screen(self, film: bool, lit: bool = True) -> int:
        """Add a lit screen that shows a desktop or a film; a dark one where not lit."""
        if not lit:
            return self.paint(linear((0.07, 0.07, 0.08)), gloss=0.08)
        h = self.uniform(0, 1)
        c = [hsv(h, 0.6, 0.5), hsv(h + 0.15, 0.5, 0.8), hsv(h + 0.5, 0.6, 0.8)]
        style = 0.9 if film else 0.1
        return self.mats.add(
            tx.SCREEN, c[0], c[1], c[2], params=(self.uniform(0, 1), style), glow=0.95
        )
