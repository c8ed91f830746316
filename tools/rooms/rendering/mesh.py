"""Geometry as instances of a few unit templates, expanded at once per room.

A piece of furniture is a list of template instances (a box, a cylinder, a cushion ...), each
with a scale, a rotation, a position, a material and a class. All instances of a room
are expanded with a few numpy calls, which takes milliseconds.

Axes: x and y span the floor, z points up, metres. A piece has its back at y = 0, its front
towards +y, is centred on x = 0 and stands on z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.rooms.rendering.shapes import UV_GRAIN, UV_LOCAL, UV_UNIT, build

# All arrays are float32 unless said otherwise; the static type is wider because numpy's stubs
# lose the precision in most arithmetic.
F32 = NDArray[np.floating[Any]]
I32 = NDArray[np.int32]


@dataclass(frozen=True)
class Template:
    """A unit shape inside [-0.5, 0.5]^3.

    Attributes:
        tri: Corners, float32 [F, 3, 3].
        normal: Shading normal at each corner, float32 [F, 3, 3].
        axes: The two coordinates used as (u, v) by each triangle, int [F, 2].
        uv_mode: How (u, v) is measured: along the longest side from a random origin
            (UV_GRAIN), in room coordinates (UV_LOCAL) or from 0 to 1 (UV_UNIT).
    """

    tri: F32
    normal: F32
    axes: NDArray[np.int64]
    uv_mode: int


@dataclass
class RawMesh:
    """Triangles of an imported model, in the axes of a piece.

    Attributes:
        tri: Corners in metres, float32 [F, 3, 3].
        normal: Corner normals, float32 [F, 3, 3].
        uv: Texture coordinates, float32 [F, 3, 2].
        material: Index into the room's material table, int32 [F].
    """

    tri: F32
    normal: F32
    uv: F32
    material: I32


Row = tuple[str, tuple[float, float, float], tuple[float, float, float], F32 | None, int, int]


@dataclass
class Piece:
    """One piece of furniture: instances of templates, or an imported mesh.

    Attributes:
        cls: Default class id of its parts.
        width: Extent along x, metres.
        depth: Extent along y, metres.
        height: Extent along z, metres.
        rows: Template instances.
        raw: Imported triangles with their class id.
        glow: Local positions (x, y, z) of small lights that the piece carries.
        marks: Local x of named parts that placement needs.
    """

    cls: int
    width: float
    depth: float
    height: float
    rows: list[Row] = field(default_factory=list)
    raw: list[tuple[RawMesh, int]] = field(default_factory=list)
    glow: list[tuple[float, float, float]] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)

    def box(
        self,
        xs: tuple[float, float],
        ys: tuple[float, float],
        zs: tuple[float, float],
        mat: int,
        cls: int | None = None,
        shape: str = "box",
        rot: F32 | None = None,
    ) -> None:
        """Add a template stretched over the given extents (rotated about its centre)."""
        self.rows.append(
            (
                shape,
                (xs[1] - xs[0], ys[1] - ys[0], zs[1] - zs[0]),
                ((xs[0] + xs[1]) / 2, (ys[0] + ys[1]) / 2, (zs[0] + zs[1]) / 2),
                rot,
                mat,
                self.cls if cls is None else cls,
            )
        )

    def rod(
        self,
        a: tuple[float, float, float],
        b: tuple[float, float, float],
        radius: float,
        mat: int,
        cls: int | None = None,
        shape: str = "cyl",
    ) -> None:
        """Add a round (or square, with shape "box") bar from point a to point b."""
        start, end = np.array(a), np.array(b)
        axis = end - start
        length = float(np.linalg.norm(axis))
        z = axis / max(length, 1e-9)
        helper = np.array([1.0, 0.0, 0.0]) if abs(z[2]) > 0.9 else np.array([0.0, 0.0, 1.0])
        x = np.cross(helper, z)
        x /= np.linalg.norm(x)
        rot = np.stack([x, np.cross(z, x), z], axis=1).astype(np.float32)
        mid = (start + end) / 2
        self.rows.append(
            (
                shape,
                (2 * radius, 2 * radius, length),
                (float(mid[0]), float(mid[1]), float(mid[2])),
                rot,
                mat,
                self.cls if cls is None else cls,
            )
        )

    def put(self, other: Piece, x: float, y: float, z: float, yaw: float = 0.0) -> None:
        """Add another piece with its origin at (x, y, z), turned by yaw radians about z."""
        turn = rot_z(yaw)
        for shape, scale, pos, rot, mat, cls in other.rows:
            p = turn @ np.array(pos, np.float32)
            new = turn if rot is None else turn @ rot
            at = (float(p[0]) + x, float(p[1]) + y, float(p[2]) + z)
            self.rows.append(
                (shape, scale, at, None if yaw == 0 and rot is None else new, mat, cls)
            )
        shift = np.array([x, y, z], np.float32)
        for mesh, cls in other.raw:
            moved = RawMesh(mesh.tri @ turn.T + shift, mesh.normal @ turn.T, mesh.uv, mesh.material)
            self.raw.append((moved, cls))
        for spot in other.glow:
            p = turn @ np.array(spot, np.float32) + shift
            self.glow.append((float(p[0]), float(p[1]), float(p[2])))


@dataclass
class SceneMesh:
    """All triangles of a room.

    Attributes:
        tri: Corners, float32 [F, 3, 3].
        normal: Corner normals, float32 [F, 3, 3].
        uv: Texture coordinates, float32 [F, 3, 2].
        material: Material index, int32 [F].
        cls: Class id, uint8 [F].
        part: Running number of the instance, int32 [F].
    """

    tri: F32
    normal: F32
    uv: F32
    material: I32
    cls: NDArray[np.uint8]
    part: I32


def rot_z(angle: float) -> F32:
    """Return the rotation by angle radians about z, float32 [3, 3]."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)


def rot_x(angle: float) -> F32:
    """Return the rotation by angle radians about x, float32 [3, 3]."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]], np.float32)


def rot_y(angle: float) -> F32:
    """Return the rotation by angle radians about y, float32 [3, 3]."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def expand(pieces: list[Piece], seed: int) -> SceneMesh:
    """Expand all instances into triangles.

    Args:
        pieces: The placed pieces, in room coordinates.
        seed: Seed of the texture origins.

    Returns:
        The merged triangles, grouped by template and then by imported mesh.
    """
    rows = [row for piece in pieces for row in piece.rows]
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row[0], []).append(i)
    origin = np.random.default_rng(seed).uniform(0, 7, (len(rows), 2)).astype(np.float32)
    parts: list[SceneMesh] = []
    for name, index in groups.items():
        parts.append(_expand_group(template(name), rows, index, origin))
    number = len(rows)
    for piece in pieces:
        for mesh, cls in piece.raw:
            count = len(mesh.tri)
            ids = np.full(count, cls, np.uint8)
            part = np.full(count, number, np.int32)
            parts.append(SceneMesh(mesh.tri, mesh.normal, mesh.uv, mesh.material, ids, part))
            number += 1
    return SceneMesh(
        np.ascontiguousarray(np.concatenate([p.tri for p in parts]), np.float32),
        np.concatenate([p.normal for p in parts]).astype(np.float32, copy=False),
        np.concatenate([p.uv for p in parts]).astype(np.float32, copy=False),
        np.concatenate([p.material for p in parts]),
        np.concatenate([p.cls for p in parts]),
        np.concatenate([p.part for p in parts]),
    )


def _expand_group(shape: Template, rows: list[Row], index: list[int], origin: F32) -> SceneMesh:
    """Expand the instances `index` of one template."""
    n, faces = len(index), len(shape.tri)
    scale = np.array([rows[i][1] for i in index], np.float32)
    shift = np.array([rows[i][2] for i in index], np.float32)
    eye = np.eye(3, dtype=np.float32)
    rot = np.stack([eye if rows[i][3] is None else rows[i][3] for i in index])  # type: ignore[misc]
    local = shape.tri.reshape(1, -1, 3) * scale[:, None]
    tri = local @ rot.transpose(0, 2, 1) + shift[:, None]
    normal = (shape.normal.reshape(1, -1, 3) / np.maximum(scale, 1e-6)[:, None]) @ rot.transpose(
        0, 2, 1
    )
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    axes = np.repeat(shape.axes, 3, axis=0)[None].repeat(n, axis=0)
    if shape.uv_mode == UV_UNIT:
        source = np.broadcast_to(shape.tri.reshape(1, -1, 3) + np.float32(0.5), local.shape)
    elif shape.uv_mode == UV_LOCAL:
        # Large surfaces are textured in room coordinates, so that patterns run on across
        # openings; which two depends on how the instance has been turned.
        source = tri
        lead = np.abs(normal).argmax(axis=-1)
        axes = np.array([[1, 2], [0, 2], [0, 1]])[lead]
    else:
        source = local
        a, b = axes[..., 0], axes[..., 1]
        ids = np.arange(n)[:, None]
        swap = scale[ids, b] > scale[ids, a]
        axes = np.where(swap[..., None], axes[..., ::-1], axes)
    uv = np.take_along_axis(source, axes, axis=2)
    if shape.uv_mode == UV_GRAIN:
        uv = uv + origin[index][:, None]
    return SceneMesh(
        tri.reshape(-1, 3, 3),
        normal.reshape(-1, 3, 3),
        uv.reshape(-1, 3, 2),
        np.repeat(np.array([rows[i][4] for i in index], np.int32), faces),
        np.repeat(np.array([rows[i][5] for i in index], np.uint8), faces),
        np.repeat(np.array(index, np.int32), faces),
    )


@lru_cache(maxsize=64)
def template(name: str) -> Template:
    """Return a unit template by name.

    Args:
        name: One of the names of `tools.rooms.rendering.shapes.build`.

    Returns:
        The template.

    Raises:
        KeyError: There is no template of that name.
    """
    tri, normal, mode = build(name)
    face = np.cross(tri[:, 1] - tri[:, 0], tri[:, 2] - tri[:, 0])
    main = np.abs(face).argmax(axis=1)
    axes = np.array([[1, 2], [0, 2], [0, 1]])[main]
    return Template(tri.astype(np.float32), normal.astype(np.float32), axes, mode)
