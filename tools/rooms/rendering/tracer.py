"""Ray casting on the triangles of a room: a thin, typed wrapper of embreex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.rooms.rendering.mesh import F32, I32, SceneMesh


class TracerMissingError(RuntimeError):
    """The ray tracer is not installed."""


def require_tracer() -> tuple[Any, Any]:
    """Import the ray tracer.

    Returns:
        The scene class and the mesh class of embreex.

    Raises:
        TracerMissingError: embreex is not installed.
    """
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise TracerMissingError("the ray tracer is missing: pip install embreex") from error
    return EmbreeScene, TriangleMesh


def dot(a: F32, b: F32) -> F32:
    """Return the dot products of vectors along the last axis, [..., 3] to [...]."""
    # Three products by hand take a third of the time of einsum on so short an axis.
    out = a[..., 0] * b[..., 0]
    out += a[..., 1] * b[..., 1]
    out += a[..., 2] * b[..., 2]
    return np.asarray(out)


@dataclass
class Hits:
    """Where rays hit: triangle (-1 for none), distance, barycentric coordinates; all [N]."""

    prim: I32
    t: F32
    u: F32
    v: F32


class Tracer:
    """A committed scene.

    Args:
        mesh: The triangles.

    Raises:
        TracerMissingError: embreex is not installed.
    """

    def __init__(self, mesh: SceneMesh) -> None:
        """Build the scene."""
        scene_class, mesh_class = require_tracer()
        self.mesh = mesh
        self._scene = scene_class()
        self._mesh = mesh_class(self._scene, mesh.tri)
        a, b = mesh.tri[:, 1] - mesh.tri[:, 0], mesh.tri[:, 2] - mesh.tri[:, 0]
        cross = np.stack(
            [
                a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
                a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
                a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
            ],
            axis=1,
        )
        length = np.maximum(np.sqrt(dot(cross, cross)), np.float32(1e-12))
        self.face_normal: F32 = np.asarray(cross / length[:, None], np.float32)
        bend = np.abs(dot(mesh.normal[:, 0], self.face_normal)) < 0.9999
        bend |= np.abs(dot(mesh.normal[:, 1], self.face_normal)) < 0.9999
        self._curved = bend | (np.abs(dot(mesh.normal[:, 2], self.face_normal)) < 0.9999)
        self._uv0 = mesh.uv[:, 0]
        self._uv1 = mesh.uv[:, 1] - mesh.uv[:, 0]
        self._uv2 = mesh.uv[:, 2] - mesh.uv[:, 0]

    def cast(self, origin: F32, ray: F32, limit: float | None = None) -> Hits:
        """Find the first hit of each ray.

        Args:
            origin: Starts, float32 [N, 3].
            ray: Directions, float32 [N, 3]; distances are in their length.
            limit: Distance beyond which nothing counts.
        """
        dists = None if limit is None else np.full(len(origin), limit, np.float32)
        r = self._scene.run(origin, ray, dists=dists, query="INTERSECT", output=True)
        return Hits(r["primID"], r["tfar"], r["u"], r["v"])

    def blocked(self, origin: F32, ray: F32, limit: float = 1.0) -> NDArray[np.bool_]:
        """Tell which rays hit something before `limit` times their length, bool [N]."""
        dists = np.full(len(origin), limit, np.float32)
        hit = self._scene.run(origin, ray, dists=dists, query="OCCLUDED")
        return np.asarray(hit != -1)

    def normals(self, hits: Hits, ray: F32) -> tuple[F32, F32]:
        """Return shading and face normals at hits, both turned towards the viewer, [N, 3]."""
        face = self.face_normal[hits.prim]
        face *= np.where(dot(face, ray) > 0, np.float32(-1), np.float32(1))[:, None]
        normal = face.copy()
        at = np.flatnonzero(self._curved[hits.prim])
        if not len(at):
            return normal, face
        corner, front = self.mesh.normal[hits.prim[at]], face[at]
        u, v = hits.u[at][:, None], hits.v[at][:, None]
        n = corner[:, 0] * (1 - u - v) + corner[:, 1] * u + corner[:, 2] * v
        n *= np.where(dot(n, front) < 0, np.float32(-1), np.float32(1))[:, None]
        length = np.sqrt(dot(n, n))
        # At silhouettes a smooth normal may point away from the viewer: keep the face's.
        bad = (dot(n, ray[at]) > -0.02 * length) | (length < 1e-6)
        n /= np.maximum(length, np.float32(1e-6))[:, None]
        normal[at] = np.where(bad[:, None], front, n)
        return normal, face

    def uv(self, hits: Hits, at: NDArray[np.int64]) -> F32:
        """Return texture coordinates at the hits numbered `at`, [N, 2]."""
        p = hits.prim[at]
        u, v = hits.u[at][:, None], hits.v[at][:, None]
        return np.asarray(self._uv0[p] + self._uv1[p] * u + self._uv2[p] * v, np.float32)
