"""The unit shapes that furniture is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

UV_GRAIN, UV_LOCAL, UV_UNIT = 0, 1, 2
"""How a texture lies on a shape: see `tools.rooms.rendering.mesh.Template`."""


def build(name: str) -> tuple[F64, F64, int]:
    """Build a shape inside [-0.5, 0.5]^3.

    Args:
        name: "box", "slab" (a box textured in the piece's metres), "panel" (a box textured
            from 0 to 1), "cyl", "disc" (a finer cylinder), "taper" and "shade" (frustums),
            "ball", "cushion", "soft" (rounded box), "bowl", "vase", "leaf" or "cloth" (a
            sheet in hanging folds).

    Returns:
        Corners [F, 3, 3], corner normals [F, 3, 3] and the texture mode.

    Raises:
        KeyError: The name is unknown.
    """
    if name in ("box", "slab", "panel"):
        mode = {"box": UV_GRAIN, "slab": UV_LOCAL, "panel": UV_UNIT}[name]
        tri = _box()
        return tri, _flat(tri), mode
    if name in ("cushion", "soft", "ball"):
        power = {"cushion": 0.55, "soft": 0.22, "ball": 1.0}[name]
        tri, normal = _super(power, power if name != "cushion" else 0.35)
        return tri, normal, UV_GRAIN
    if name == "cloth":
        tri, normal = _cloth()
        return tri, normal, UV_GRAIN
    if name == "leaf":
        tri = _leaf()
        return tri, _flat(tri), UV_GRAIN
    disc = [(0.0, -0.5), (0.5, -0.5), (0.5, 0.5), (0.0, 0.5)]
    if name == "disc":
        tri, normal = _lathe(np.array(disc), 36)
        return tri, normal, UV_GRAIN
    profiles = {
        "cyl": disc,
        "shade": [(0.5, -0.5), (0.32, 0.5)],
        "taper": [(0.0, -0.5), (0.3, -0.5), (0.5, 0.5), (0.0, 0.5)],
        "bowl": [
            (0.0, -0.5),
            (0.3, -0.5),
            (0.45, -0.1),
            (0.5, 0.5),
            (0.44, 0.5),
            (0.38, 0.0),
            (0.2, -0.3),
            (0.0, -0.35),
        ],
        "vase": [
            (0.0, -0.5),
            (0.3, -0.5),
            (0.48, -0.2),
            (0.45, 0.05),
            (0.22, 0.3),
            (0.28, 0.5),
            (0.0, 0.45),
        ],
    }
    tri, normal = _lathe(np.array(profiles[name]), 12)
    return tri, normal, UV_GRAIN


def _flat(tri: F64) -> F64:
    """Return the face normal repeated at each corner."""
    n = np.cross(tri[:, 1] - tri[:, 0], tri[:, 2] - tri[:, 0])
    n /= np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-12)
    return np.repeat(n[:, None], 3, axis=1)


def _box() -> F64:
    """Return the 12 triangles of a unit cube, facing outwards."""
    v = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))]
    return np.asarray(v[np.array(faces)])


def _grid(points: F64, normals: F64) -> tuple[F64, F64]:
    """Turn a grid of points [A, B, 3] into triangles, dropping the empty ones."""
    a, b = np.arange(points.shape[0] - 1), np.arange(points.shape[1] - 1)
    i, j = (g.ravel() for g in np.meshgrid(a, b, indexing="ij"))

    def corners(x: F64) -> F64:
        q = [x[i, j], x[i + 1, j], x[i + 1, j + 1], x[i, j + 1]]
        return np.concatenate([np.stack([q[0], q[1], q[2]], 1), np.stack([q[0], q[2], q[3]], 1)])

    tri, normal = corners(points), corners(normals)
    area = np.linalg.norm(np.cross(tri[:, 1] - tri[:, 0], tri[:, 2] - tri[:, 0]), axis=1)
    keep = area > 1e-9
    return tri[keep], normal[keep]


def _lathe(profile: F64, sides: int) -> tuple[F64, F64]:
    """Revolve a profile of (radius, z) about z; each segment has its own smooth normals."""
    phi = np.linspace(0, 2 * np.pi, sides + 1)
    c, s = np.cos(phi), np.sin(phi)
    tris, normals = [], []
    for (r0, z0), (r1, z1) in zip(profile[:-1], profile[1:], strict=True):
        length = np.hypot(r1 - r0, z1 - z0)
        nr, nz = (z1 - z0) / length, -(r1 - r0) / length
        ring = [np.stack([r * c, r * s, np.full_like(c, z)], 1) for r, z in ((r0, z0), (r1, z1))]
        n = np.stack([nr * c, nr * s, np.full_like(c, nz)], 1)
        tri, normal = _grid(np.stack(ring, 1), np.stack([n, n], 1))
        tris.append(tri)
        normals.append(normal)
    return np.concatenate(tris), np.concatenate(normals)


def _super(e1: float, e2: float) -> tuple[F64, F64]:
    """Return a superellipsoid: e = 1 is a ball, small e a rounded box."""

    def power(x: F64, e: float) -> F64:
        return np.sign(x) * np.abs(x) ** e

    lon, lat = np.meshgrid(
        np.linspace(-np.pi, np.pi, 13), np.linspace(-np.pi / 2, np.pi / 2, 9), indexing="ij"
    )
    cl, sl, cp, sp = np.cos(lon), np.sin(lon), np.cos(lat), np.sin(lat)
    pos = np.stack(
        [power(cp, e1) * power(cl, e2), power(cp, e1) * power(sl, e2), power(sp, e1)], axis=-1
    )
    normal = np.stack(
        [
            power(cp, 2 - e1) * power(cl, 2 - e2),
            power(cp, 2 - e1) * power(sl, 2 - e2),
            power(sp, 2 - e1),
        ],
        axis=-1,
    )
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    return _grid(pos / 2, normal)


def _cloth() -> tuple[F64, F64]:
    """Return a sheet in the xz plane that hangs in vertical folds."""
    x = np.linspace(-0.5, 0.5, 49)
    wave = 0.35 * np.sin(2 * np.pi * 6 * x) + 0.12 * np.sin(2 * np.pi * 2.3 * x + 1)
    # The sheet is about ten times as wide as its folds are deep: scale the slope likewise.
    slope = np.gradient(wave, x) * 0.1
    n = np.stack([-slope, np.ones_like(x), np.zeros_like(x)], 1)
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    # Undo the division by the scale that instances apply to normals (depth : width = 1 : 10).
    n = n * np.array([1.0, 0.1, 1.0])
    rows = [np.stack([x, wave, np.full_like(x, z)], 1) for z in (-0.5, 0.5)]
    return _grid(np.stack(rows, 1), np.stack([n, n], 1))


def _leaf() -> F64:
    """Return a bent leaf that grows along +z and bows towards +y."""
    t = np.linspace(0, 1, 5)
    half = 0.5 * np.sin(np.pi * np.clip(t * 0.92 + 0.06, 0, 1))
    bow = 0.9 * t**2 - 0.4
    left = np.stack([-half, bow, t - 0.5], 1)
    right = np.stack([half, bow, t - 0.5], 1)
    tri, _ = _grid(np.stack([left, right], 1), np.zeros((5, 2, 3)))
    return tri
