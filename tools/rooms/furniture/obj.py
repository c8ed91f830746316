"""A small reader of OBJ meshes and MTL materials."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass
class ObjModel:
    """A triangulated OBJ file.

    Attributes:
        points: Vertices, float64 [V, 3].
        uvs: Texture coordinates, float64 [T, 2], at least one row.
        normals: Normals, float64 [N, 3], at least one row.
        faces: Vertex indices, int64 [F, 3].
        uv_ids: Texture indices, int64 [F, 3]; -1 where a face has none.
        normal_ids: Normal indices, int64 [F, 3]; -1 where a face has none.
        material: Index into `names`, int64 [F].
        names: Material names.
        libraries: MTL file names.
    """

    points: F64
    uvs: F64
    normals: F64
    faces: I64
    uv_ids: I64
    normal_ids: I64
    material: I64
    names: list[str]
    libraries: list[str]


@dataclass
class _Reader:
    """State while lines are read."""

    points: list[list[str]] = field(default_factory=list)
    uvs: list[list[str]] = field(default_factory=list)
    normals: list[list[str]] = field(default_factory=list)
    corners: list[tuple[int, int, int]] = field(default_factory=list)
    material: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)
    current: int = -1

    def corner(self, text: str) -> tuple[int, int, int]:
        """Parse "v", "v/t", "v//n" or "v/t/n" into zero-based indices, -1 for none."""
        sizes = (len(self.points), len(self.uvs), len(self.normals))
        out = [-1, -1, -1]
        for i, part in enumerate(text.split("/")[:3]):
            if part:
                n = int(part)
                out[i] = n - 1 if n > 0 else sizes[i] + n
        return out[0], out[1], out[2]

    def use(self, name: str) -> None:
        """Make a material current."""
        if name not in self.names:
            self.names.append(name)
        self.current = self.names.index(name)

    def face(self, words: list[str]) -> None:
        """Add a polygon as a fan of triangles."""
        if self.current < 0:
            self.use("")
        fan = [self.corner(w) for w in words]
        for i in range(1, len(fan) - 1):
            self.corners += [fan[0], fan[i], fan[i + 1]]
            self.material.append(self.current)


def _table(rows: list[list[str]], width: int) -> F64:
    """Turn rows of numbers into an array of at least one row."""
    if not rows:
        return np.zeros((1, width))
    return np.array([r[:width] for r in rows], np.float64)


def parse_obj(text: str) -> ObjModel:
    """Parse an OBJ file.

    Args:
        text: Its contents.

    Returns:
        The mesh; polygons become fans of triangles.

    Raises:
        ValueError: A number cannot be read or an index is out of range.
    """
    reader = _Reader()
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        head = words[0]
        if head == "v":
            reader.points.append(words[1:])
        elif head == "vt":
            reader.uvs.append(words[1:])
        elif head == "vn":
            reader.normals.append(words[1:])
        elif head == "f":
            reader.face(words[1:])
        elif head == "usemtl":
            reader.use(line.split(None, 1)[1].strip() if len(words) > 1 else "")
        elif head == "mtllib" and len(words) > 1:
            reader.libraries.append(line.split(None, 1)[1].strip())
    corners = np.array(reader.corners, np.int64).reshape(-1, 3, 3)
    points = _table(reader.points, 3)
    if len(corners) and (corners[..., 0].max() >= len(points) or corners[..., 0].min() < 0):
        raise ValueError("a face names a vertex that does not exist")
    return ObjModel(
        points,
        _table(reader.uvs, 2),
        _table(reader.normals, 3),
        corners[..., 0],
        corners[..., 1],
        corners[..., 2],
        np.array(reader.material, np.int64),
        reader.names,
        reader.libraries,
    )


def parse_mtl(text: str) -> dict[str, tuple[F64, str | None, float]]:
    """Parse an MTL file.

    Args:
        text: Its contents.

    Returns:
        Diffuse sRGB colour [3], texture file (or None) and opacity, by material name.

    Raises:
        ValueError: A number cannot be read.
    """
    out: dict[str, tuple[F64, str | None, float]] = {}
    name = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        head = words[0]
        if head == "newmtl":
            name = line.split(None, 1)[1].strip()
            out[name] = (np.full(3, 0.6), None, 1.0)
        elif name in out:
            color, image, opacity = out[name]
            if head == "Kd" and len(words) >= 4:
                color = np.array([float(w) for w in words[1:4]])
            elif head == "map_Kd":
                image = line.split(None, 1)[1].strip().replace("\\", "/")
            elif head == "d":
                opacity = float(words[-1])
            out[name] = (color, image, opacity)
    return out
