"""Irradiance at all pixels of a view, interpolated from a coarser grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tools.rooms.rendering import lighting as lt
from tools.rooms.rendering.mesh import F32
from tools.rooms.rendering.surface import Scene, Surface
from tools.rooms.rendering.tracer import dot

# Light is computed at every STEP-th pixel in both directions.
STEP = 3


def irradiance_map(scene: Scene, s: Surface, size: int) -> F32:
    """Return the irradiance at all pixels, [S * S, 3], from a coarser grid."""
    grid = np.arange(size * size).reshape(size, size)[::STEP, ::STEP]
    n = len(grid)
    flat = grid.ravel()
    i, j = np.divmod(np.arange(n * n), n)
    pattern = (i % 2) * 2 + j % 2
    point, normal = s.point[flat], s.normal[flat]
    coarse = _irradiance(scene, point, normal, s.face[flat], pattern)
    coarse = lt.smooth(
        coarse.reshape(n, n, 6),
        normal.reshape(n, n, 3),
        point.reshape(n, n, 3),
        s.hits.t[flat].reshape(n, n),
    )
    six, weight = _upsample(coarse, s, size)
    thin = np.flatnonzero(weight < 0.02)
    if len(thin):
        # Sample details that the coarse grid missed, with two patterns.
        at = np.tile(thin, 2)
        pattern = np.repeat(np.array([0, 2]), len(thin))
        own = _irradiance(scene, s.point[at], s.normal[at], s.face[at], pattern)
        six[thin] = (own[: len(thin)] + own[len(thin) :]) / 2
    straight, share = six[:, :3], six[:, 3:]
    straight += lt.small_lamps(scene.lights, s.point, s.normal) * share
    straight += lt.sunlight(scene.tracer, scene.lights, s.point, s.normal, s.face)
    # A sixth of the pixels suffices for means.
    some = np.flatnonzero(scene.glow[s.material[::6]] == 0) * 6
    mean = straight[some].mean(0)
    rho = np.clip(s.color[some].mean(0), 0.2, 0.6)
    # Indirect light: a diffuse room reflects rho, rho^2, ... of the direct light.
    share *= mean * rho / (1 - rho) * np.float32(0.9) + np.float32(0.1) * mean.mean()
    straight += share
    return straight


def _irradiance(
    scene: Scene, point: F32, normal: F32, face: F32, pattern: NDArray[np.int64]
) -> F32:
    """Return direct light and share of ambient light, [N, 6]."""
    straight = lt.direct(scene.tracer, scene.lights, point, normal, face, pattern)
    share = lt.gather(scene.tracer, scene.lights, scene.mean, point, normal, face, pattern)
    return np.concatenate([straight, share], 1)


def _upsample(coarse: F32, s: Surface, size: int) -> tuple[F32, F32]:
    """Interpolate the coarse grid at all pixels, between samples of the same surface only.

    Works on planes of one component each, which numpy handles far faster than triples.

    Returns:
        The maps [S * S, C] and the weight each pixel has found, [S * S], 0 for none.
    """
    point = np.ascontiguousarray(s.point.T).reshape(3, size, size)
    normal = np.ascontiguousarray(s.normal.T).reshape(3, size, size)
    offset = dot(s.point, s.normal).reshape(size, size)
    scale = (1 / (0.012 * s.hits.t + 0.004)).reshape(size, size)
    # At the far rim there is no next grid point: the last one stands in for it.
    rim = ((0, 0), (0, 1), (0, 1))
    grid_p, grid_n = (np.pad(m[:, ::STEP, ::STEP], rim, "edge") for m in (point, normal))
    planes = np.pad(coarse.transpose(2, 0, 1), rim, "edge")
    out = np.empty((len(planes), size, size), np.float32)
    total = np.empty((size, size), np.float32)
    for py in range(STEP):
        for px in range(STEP):
            own = (slice(py, None, STEP), slice(px, None, STEP))
            x, y, z = (np.ascontiguousarray(m[own]) for m in normal)
            d, k = offset[own].copy(), scale[own].copy()
            h, w = k.shape
            acc, found = np.zeros((len(planes), h, w), np.float32), np.zeros((h, w), np.float32)
            for dy in range(2 if py else 1):
                for dx in range(2 if px else 1):
                    there = (slice(None), slice(dy, dy + h), slice(dx, dx + w))
                    g, n = grid_p[there], grid_n[there]
                    plane = np.abs(g[0] * x + g[1] * y + g[2] * z - d) * k
                    weight = np.clip(1.5 - plane, 0, 1)
                    weight *= np.clip((n[0] * x + n[1] * y + n[2] * z) * 4 - 3, 0, 1)
                    weight *= np.float32(abs(1 - dy - py / STEP) * abs(1 - dx - px / STEP))
                    acc += planes[there] * weight
                    found += weight
            acc /= np.maximum(found, np.float32(1e-6))
            out[:, py::STEP, px::STEP], total[own] = acc, found
    return np.ascontiguousarray(out.reshape(len(planes), -1).T), total.ravel()
