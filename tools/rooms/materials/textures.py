"""The materials of a room, and their evaluation at points."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tools.rooms.materials.patterns import IMAGE, PATTERNS, SKY, SOLID, SURFACES, Query
from tools.rooms.rendering.mesh import F32, I32

# Share of the palettes' contrast that surfaces keep: real paints, woods and fabrics are subtle.
TEXTURE_CONTRAST = 0.6


@dataclass
class Materials:
    """The material table of one room.

    Attributes:
        rows: One row per material: kind, three linear colours and six parameters.
        gloss: Mirror reflectance at normal incidence, 0 to 1.
        glow: Emission in display units; 0 for materials that only reflect.
        images: Mip pyramids of image textures, linear RGB.
    """

    rows: list[list[float]] = field(default_factory=list)
    gloss: list[float] = field(default_factory=list)
    glow: list[float] = field(default_factory=list)
    images: list[list[F32]] = field(default_factory=list)

    def add(
        self,
        kind: int,
        c0: NDArray[np.floating],
        c1: NDArray[np.floating] | None = None,
        c2: NDArray[np.floating] | None = None,
        params: tuple[float, ...] = (),
        gloss: float = 0.0,
        glow: float = 0.0,
    ) -> int:
        """Add a material.

        Args:
            kind: One of the texture kinds of this module.
            c0: Main linear colour, [3] in 0..1.
            c1: Second colour, c0 by default.
            c2: Third colour, c1 by default.
            params: Up to six numbers, whose meaning the kind sets.
            gloss: Mirror reflectance at normal incidence.
            glow: Emission in display units.

        Returns:
            The index of the material.
        """
        c1 = c0 if c1 is None else c1
        c2 = c1 if c2 is None else c2
        if kind in SURFACES:
            c1, c2 = c0 + TEXTURE_CONTRAST * (c1 - c0), c0 + TEXTURE_CONTRAST * (c2 - c0)
        fill = list(params) + [0.0] * (6 - len(params))
        self.rows.append([float(kind), *map(float, (*c0, *c1, *c2)), *fill])
        self.gloss.append(gloss)
        self.glow.append(glow)
        return len(self.rows) - 1

    def table(self) -> F32:
        """Return the rows as float32 [M, 16]."""
        return np.array(self.rows, np.float32)


def _sample_image(mips: list[F32], u: F32, v: F32, foot: F32) -> F32:
    """Look a pyramid up at (u, v) in tile units; foot is the footprint in tiles."""
    level = np.log2(np.maximum(foot * mips[0].shape[0], 1e-3))
    level = np.clip(np.ceil(level), 0, len(mips) - 1).astype(np.int64)
    out = np.empty((len(u), 3), np.float32)
    for k in np.unique(level):
        at = np.flatnonzero(level == k)
        img = mips[int(k)]
        h, w = img.shape[:2]
        x, y = (u[at] % 1) * w - 0.5, ((1 - v[at]) % 1) * h - 0.5
        x0, y0 = np.floor(x), np.floor(y)
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        xa, ya = x0.astype(np.int64) % w, y0.astype(np.int64) % h
        xb, yb = (xa + 1) % w, (ya + 1) % h
        top = img[ya, xa] * (1 - fx) + img[ya, xb] * fx
        low = img[yb, xa] * (1 - fx) + img[yb, xb] * fx
        out[at] = top * (1 - fy) + low * fy
    return out


def evaluate(mats: Materials, table: F32, material: I32, uv: F32, foot: F32, ray: F32) -> F32:
    """Colour points.

    Args:
        mats: The material table, for its images.
        table: `mats.table()`.
        material: Material of each point, int32 [N].
        uv: Texture coordinates, float32 [N, 2]; metres for most kinds.
        foot: Width of the pixel on the surface, metres, float32 [N].
        ray: Unit direction of the viewing ray, float32 [N, 3].

    Returns:
        Linear RGB, float32 [N, 3].
    """
    out = np.empty((len(material), 3), np.float32)
    # One material at a time: its parameters are then plain numbers.
    order = np.argsort(material.astype(np.int16), kind="stable")
    edges = np.flatnonzero(np.diff(material[order])) + 1
    for at in np.split(order, edges) if len(order) else []:
        row = table[material[at[0]]]
        kind = int(row[0])
        if kind == SOLID:
            out[at] = row[1:4]
            continue
        points = uv[at]
        q = Query(row, points[:, 0], points[:, 1], foot[at], ray[at] if kind == SKY else ray[:0])
        if kind == IMAGE:
            # p1 is the number of texture tiles per metre of the model's surface.
            color = _sample_image(mats.images[int(q.p(0))], q.u, q.v, q.foot * q.p(1))
            out[at] = color * q.color(0)
        else:
            out[at] = PATTERNS[kind](q)
    return out
