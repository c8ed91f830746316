"""Surfaces: positions, normals and colours of the points that rays hit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.rooms.materials import patterns as pt
from tools.rooms.materials import textures as tx
from tools.rooms.materials.textures import Materials
from tools.rooms.rendering.lighting import Lights
from tools.rooms.rendering.mesh import F32
from tools.rooms.rendering.tracer import Hits, Tracer, dot


@dataclass
class Surface:
    """Points seen by rays: hits, positions, normals, depth and colour, all [N, ...]."""

    hits: Hits
    ray: F32
    point: F32
    normal: F32
    face: F32
    material: NDArray[np.int32]
    color: F32


@dataclass
class Scene:
    """All that rendering needs: geometry, materials and lights of one room."""

    tracer: Tracer
    mats: Materials
    lights: Lights

    def __post_init__(self) -> None:
        """Tabulate the materials."""
        self.table = self.mats.table()
        self.gloss = np.array(self.mats.gloss, np.float32)
        self.glow = np.array(self.mats.glow, np.float32)
        mean = (self.table[:, 1:4] + self.table[:, 4:7]) / 2
        for i in np.flatnonzero(self.table[:, 0] == pt.IMAGE):
            image = self.mats.images[int(self.table[i, 10])]
            mean[i] = self.table[i, 1:4] * image[-1][0, 0]
        self.mean: F32 = np.ascontiguousarray(mean, np.float32)


def cast_surface(
    scene: Scene, eye: F32, ray: F32, pixel: float, extra: F32 | None = None
) -> Surface:
    """Cast rays from `eye` ([3] or [N, 3]) and colour what they hit.

    `pixel` is the footprint at unit distance; `extra` lengthens the way already gone.
    """
    tracer = scene.tracer
    origin = np.ascontiguousarray(np.broadcast_to(eye, ray.shape), np.float32)
    hits = tracer.cast(origin, ray)
    # Rays through a crack between solids hit nothing; show them the first triangle, far off.
    lost = hits.prim < 0
    if lost.any():
        hits.prim[lost], hits.t[lost], hits.u[lost], hits.v[lost] = 0, 8.0, 0.3, 0.3
    point = origin + ray * hits.t[:, None]
    normal, face = tracer.normals(hits, ray)
    material = tracer.mesh.material[hits.prim]
    length = np.sqrt(dot(ray, ray))
    unit = ray / length[:, None]
    slope = np.maximum(-dot(unit, face), 0.08)
    gone = hits.t if extra is None else hits.t + extra
    foot = gone * np.float32(pixel) / np.sqrt(slope * np.sqrt(slope))
    # Plain colours, which are about half of what is seen, need no coordinates.
    at = np.flatnonzero(scene.table[material, 0] != pt.SOLID)
    uv = np.zeros((len(ray), 2), np.float32)
    uv[at] = tracer.uv(hits, at)
    color = tx.evaluate(scene.mats, scene.table, material, uv, foot, unit)
    return Surface(hits, ray, point, normal, face, material, color)
