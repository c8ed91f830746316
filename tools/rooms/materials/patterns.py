"""Procedural patterns, filtered to the pixel's footprint.

Lines (grout, plank gaps, stripes) are box-filtered exactly; whatever else repeats fades into
its mean as its period nears the footprint. So a pattern never turns into pixel noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tools.rooms.rendering.mesh import F32

SOLID, GRAIN, PLANKS, TILES, STRIPES, CHECKS, DOTS = range(7)
BLOTCH, WEAVE, ART, SCREEN, SKY, IMAGE, MOTIF = range(7, 14)
# Paint, wood, tiles and fabric, as opposed to pictures and the view through a window.
SURFACES = frozenset({GRAIN, PLANKS, TILES, STRIPES, CHECKS, DOTS, BLOTCH, WEAVE, MOTIF})


@dataclass
class Query:
    """Points of one material to be coloured.

    Attributes:
        row: Row of the material table, [16].
        u: First texture coordinate, metres for most kinds, [N].
        v: Second texture coordinate, [N].
        foot: Width of the pixel on the surface, [N].
        ray: Unit viewing directions, [N, 3]; only the view through windows needs them.
    """

    row: F32
    u: F32
    v: F32
    foot: F32
    ray: F32

    def color(self, i: int) -> F32:
        """Return the i-th colour, [3]."""
        return self.row[1 + 3 * i : 4 + 3 * i]

    def p(self, i: int) -> np.float32:
        """Return the i-th parameter."""
        value: np.float32 = self.row[10 + i]
        return value


def _mix(a: F32, b: F32, t: F32) -> F32:
    """Blend two colours, [3] or [N, 3], by t [N]."""
    return np.asarray(a + (b - a) * t[:, None], np.float32)


def _hash(i: F32, j: F32, seed: np.float32) -> F32:
    """Return a number in 0..1 for each cell (i, j)."""
    n = (i.astype(np.int64) * 374761393 + j.astype(np.int64) * 668265263) & 0x7FFFFFFF
    n = (n + int(seed * 8191) * 69069) & 0x7FFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0x7FFFFFFF
    return np.asarray(((n ^ (n >> 16)) & 0xFFFF) / 65535, np.float32)


def _pulse(x: F32, width: F32 | np.float32 | float, foot: F32) -> F32:
    """Return the box-filtered share of the period [0, 1) below `width`, at x over `foot`."""
    foot = np.maximum(foot, 1e-4)

    def area(t: F32) -> F32:
        whole = np.floor(t)
        return np.asarray(whole * width + np.minimum(t - whole, width), np.float32)

    return np.asarray((area(x + foot / 2) - area(x - foot / 2)) / foot, np.float32)


def _fade(size: np.float32 | float, foot: F32) -> F32:
    """Return how visible a feature of the given size is: 1 at 3 footprints, 0 at one."""
    return np.asarray(np.clip((size / np.maximum(foot, 1e-6) - 1) / 2, 0, 1), np.float32)


def _smooth(u: F32, v: F32, seed: np.float32 | F32) -> F32:
    """Return smooth blotches of about unit size, roughly in -1..1."""
    a = np.sin(2.1 * u + 1.3 * v + 6.3 * seed) + np.sin(-1.1 * u + 2.7 * v + 17.0 * seed)
    b = np.sin(3.7 * u - 2.2 * v + 31.0 * seed + 0.8 * a)
    return np.asarray(0.35 * a + 0.3 * b, np.float32)


def _solid(q: Query) -> F32:
    return np.broadcast_to(q.color(0), (len(q.u), 3))


def _grain_at(u: F32, v: F32, seed: np.float32, foot: F32) -> F32:
    """Return wood figure along u, roughly in -1..1."""
    warp = v + 0.012 * np.sin(2.3 * u + 40 * seed) + 0.006 * np.sin(5.9 * u + 9 * seed)
    wide = np.sin(62 * warp + 21 * seed) * _fade(0.1, foot)
    fine = np.sin(171 * warp + 2.0 * np.sin(1.7 * u) + 13 * seed) * _fade(0.036, foot)
    return np.asarray(0.6 * wide + 0.4 * fine, np.float32)


def _grain(q: Query) -> F32:
    return _mix(q.color(0), q.color(1), 0.5 + 0.5 * _grain_at(q.u, q.v, q.p(0), q.foot))


def _planks(q: Query) -> F32:
    """p0 seed, p1 length, p2 width, p3 gap width, p4 offset of rows (0: random)."""
    y = q.v / q.p(2)
    row = np.floor(y)
    x = q.u / q.p(1) + (row * q.p(4) if q.p(4) > 0 else _hash(row, row, q.p(0)))
    seen = _fade(q.p(2), q.foot)
    tone = _hash(np.floor(x), row, q.p(0)) * seen + np.float32(0.5) * (1 - seen)
    figure = _grain_at(q.u + 3 * tone, q.v + 0.7 * tone, q.p(0), q.foot) * q.p(5)
    base = _mix(q.color(0), q.color(1), np.clip(0.15 + 0.7 * tone + 0.25 * figure, 0, 1))
    gap = np.maximum(
        _pulse(y, q.p(3) / q.p(2), q.foot / q.p(2)), _pulse(x, q.p(3) / q.p(1), q.foot / q.p(1))
    )
    return _mix(base, q.color(2), gap)


def _tiles(q: Query) -> F32:
    """p0 seed, p1 width, p2 height, p3 grout, p4 tone variation, p5 checkerboard."""
    x, y = q.u / q.p(1), q.v / q.p(2)
    i, j = np.floor(x), np.floor(y)
    cell = _hash(i, j, q.p(0))
    seen = _fade(min(q.p(1), q.p(2)), q.foot)
    cloud = _smooth(q.u * 9 + 5 * cell, q.v * 9, q.p(0)) * _fade(0.15, q.foot)
    tone = (cell - np.float32(0.5) + np.float32(0.3) * cloud) * q.p(4) * seen
    base = q.color(0)
    if q.p(5) > 0.5:
        odd = ((i + j) % 2).astype(np.float32)
        base = _mix(base, q.color(1), odd * seen + np.float32(0.5) * (1 - seen))
    base = base * (1 + tone[:, None])
    grout = np.maximum(
        _pulse(x, q.p(3) / q.p(1), q.foot / q.p(1)), _pulse(y, q.p(3) / q.p(2), q.foot / q.p(2))
    )
    return _mix(np.asarray(base, np.float32), q.color(2), grout)


def _stripes(q: Query) -> F32:
    """p0 period along u, p1 share of the second colour, p2 period of a thin third line."""
    base = _mix(q.color(0), q.color(1), _pulse(q.u / q.p(0), q.p(1), q.foot / q.p(0)))
    line = _pulse(q.u / q.p(0) + np.float32(0.25), 0.06, q.foot / q.p(0))
    return _mix(base, q.color(2), line)


def _checks(q: Query) -> F32:
    """p0 period: two crossing sets of stripes, as in a plaid."""
    a = _pulse(q.u / q.p(0), 0.5, q.foot / q.p(0))
    b = _pulse(q.v / q.p(0), 0.5, q.foot / q.p(0))
    return _mix(_mix(q.color(0), q.color(1), 0.5 * (a + b)), q.color(2), 0.35 * a * b)


def _dots(q: Query) -> F32:
    """p0 period, p1 radius as a share of it: dots on a staggered lattice."""
    y = q.v / q.p(0)
    x = q.u / q.p(0) + 0.5 * (np.floor(y) % 2)
    d = np.hypot(x - np.floor(x) - 0.5, y - np.floor(y) - 0.5)
    soft = np.maximum(q.foot / q.p(0), 0.02)
    inside = np.clip((q.p(1) - d) / soft + 0.5, 0, 1)
    seen = _fade(q.p(0), q.foot)
    return _mix(q.color(0), q.color(1), inside * seen + np.pi * q.p(1) ** 2 * (1 - seen))


def _motif(q: Query) -> F32:
    """p0 period: a smooth damask-like ornament from a few crossing waves."""
    w = np.float32(2 * np.pi) / q.p(0)
    a = np.cos(w * q.u) * np.cos(w * q.v) + 0.6 * np.cos(w * q.u * 2) - 0.5 * np.cos(w * q.v * 2)
    shape = np.clip(a * 1.8, -1, 1) * _fade(q.p(0) * 0.5, q.foot)
    return _mix(q.color(0), q.color(1), 0.5 + 0.5 * shape)


def _blotch(q: Query) -> F32:
    """p0 seed, p1 size: smooth clouds with veins, as in stone."""
    n = _smooth(q.u / q.p(1), q.v / q.p(1), q.p(0))
    m = _smooth(q.u / q.p(1) * 2.7, q.v / q.p(1) * 2.7, q.p(0) + 0.37) * _fade(q.p(1) * 0.8, q.foot)
    vein = np.exp(-np.abs(n + 0.5 * m) * 9) * _fade(q.p(1) * 0.4, q.foot)
    base = _mix(q.color(0), q.color(1), np.clip(0.5 + 0.45 * (n + 0.5 * m), 0, 1))
    return _mix(base, q.color(2), 0.7 * vein)


def _weave(q: Query) -> F32:
    """p0 seed, p1 thread width: cloth with a soft, larger shading."""
    w = np.float32(np.pi) / q.p(1)
    cross = np.sin(w * q.u) * np.sin(w * q.v) * _fade(q.p(1), q.foot)
    cloud = _smooth(q.u * 4, q.v * 4, q.p(0))
    return _mix(q.color(0), q.color(1), np.clip(0.5 + 0.3 * cross + 0.3 * cloud, 0, 1))


def _art(q: Query) -> F32:
    """p0 seed, p1 style below 0.5: landscape, else abstract shapes; uv run from 0 to 1."""
    u, v, s = q.u, q.v, q.p(0)
    ridge = 0.42 + 0.12 * np.sin(5 * u + 20 * s) + 0.06 * np.sin(11 * u + 50 * s)
    near = 0.22 + 0.07 * np.sin(4 * u + 70 * s)
    sun = np.clip((0.09 - np.hypot(u - 0.3 - 0.4 * s, v - 0.75)) * 40, 0, 1)
    soft = np.float32(40)
    land = _mix(_mix(q.color(0), q.color(1), np.clip(1.4 * v - 0.3, 0, 1)), q.color(2), sun)
    land = _mix(land, q.color(2) * 0.45, np.clip((ridge - v) * soft, 0, 1))
    land = _mix(land, q.color(1) * 0.25, np.clip((near - v) * soft, 0, 1))
    a = np.clip((0.26 - np.hypot(u - 0.2 - 0.5 * s, v - 0.62)) * soft, 0, 1)
    b = np.clip((np.sin(6 * u + 30 * s + 3 * v) * 0.2 + 0.35 - v) * soft, 0, 1)
    c = np.clip((0.05 - np.abs(u + 0.6 * v - 0.7 - 0.3 * s)) * soft, 0, 1)
    shapes = _mix(_mix(_mix(q.color(0), q.color(1), a), q.color(2), b), q.color(1) * 0.2, c)
    return land if q.p(1) < 0.5 else shapes


def _screen(q: Query) -> F32:
    """p0 seed, p1 below 0.5: windows with text lines, else a film still; uv from 0 to 1."""
    u, v, s = q.u, q.v, q.p(0)
    page = ((u > 0.08) & (u < 0.62) & (v > 0.12) & (v < 0.86)).astype(np.float32)
    lines = ((v * 16) % 1 < 0.4) & (u > 0.12) & (u < 0.3 + 0.28 * _hash(np.floor(v * 16), v * 0, s))
    desk = _mix(q.color(0), q.color(1), np.clip(u * 0.6 + v * 0.4, 0, 1))
    desk = _mix(desk, np.full_like(desk, 0.85), page)
    desk = _mix(desk, np.full_like(desk, 0.25), page * lines)
    film = _mix(q.color(1), q.color(0), np.clip(v + 0.15 * np.sin(5 * u + 9 * s), 0, 1))
    blob = np.clip((0.24 - np.hypot(u - 0.35 - 0.3 * s, (v - 0.4) * 0.7)) * 25, 0, 1)
    film = _mix(film, q.color(2), blob)
    return desk if q.p(1) < 0.5 else film


def _sky(q: Query) -> F32:
    """p0 seed: what is seen through a window, by the direction of the ray."""
    up = q.ray[:, 2]
    turn = np.arctan2(q.ray[:, 1], q.ray[:, 0])
    s = q.p(0)
    cloud = np.clip(_smooth(turn * 3 + 9 * s, up * 9, s), 0, 1) * np.clip(up * 4, 0, 1)
    sky = _mix(q.color(1), q.color(0), np.clip(up * 1.8, 0, 1))
    sky = _mix(sky, np.full_like(sky, 0.95), 0.6 * cloud)
    hill = 0.05 + 0.05 * np.sin(turn * 4 + 20 * s) + 0.03 * np.sin(turn * 13 + 40 * s)
    green = q.color(2)
    out = _mix(sky, green * 0.75 + 0.12, np.clip((hill - up) * 60, 0, 1))
    lawn = np.clip((-0.06 + 0.02 * np.sin(turn * 9 + s) - up) * 60, 0, 1)
    return _mix(out, green * (1.1 + 0.1 * np.sin(turn * 21)[:, None]), lawn)


PATTERNS: dict[int, Callable[[Query], F32]] = {
    SOLID: _solid,
    GRAIN: _grain,
    PLANKS: _planks,
    TILES: _tiles,
    STRIPES: _stripes,
    CHECKS: _checks,
    DOTS: _dots,
    BLOTCH: _blotch,
    WEAVE: _weave,
    ART: _art,
    SCREEN: _screen,
    SKY: _sky,
    MOTIF: _motif,
}
