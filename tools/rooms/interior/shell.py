"""The empty room: walls with openings, windows, a door, floor, ceiling and their finishes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tools.rooms.classes import CLASS_IDS as C
from tools.rooms.materials import patterns as tx
from tools.rooms.materials.palette import Kit, hsv, linear
from tools.rooms.rendering.mesh import Piece

WALL_THICK = 0.18


@dataclass
class Opening:
    """A window or door in a wall: its extent along the wall and in height, metres."""

    kind: str
    u0: float
    u1: float
    z0: float
    z1: float


@dataclass
class Wall:
    """One wall. Point u along it lies at start + u * along; inward points into the room.

    Attributes:
        start: Right end, seen from inside the room, float [2].
        along: Unit direction to the left end, float [2].
        inward: Unit normal, float [2].
        yaw: Turn about z that makes a piece stand with its back to the wall, radians.
        length: Metres.
        openings: Windows and doors.
    """

    start: NDArray[np.float64]
    along: NDArray[np.float64]
    inward: NDArray[np.float64]
    yaw: float
    length: float
    openings: list[Opening] = field(default_factory=list)

    def at(self, u: float, out: float = 0.0) -> tuple[float, float]:
        """Return the floor point at u along the wall, `out` metres from it."""
        p = self.start + u * self.along + out * self.inward
        return float(p[0]), float(p[1])


@dataclass
class Shell:
    """The empty room: x in 0..width, y in 0..depth, z in 0..height, metres."""

    width: float
    depth: float
    height: float
    walls: list[Wall]
    pieces: list[Piece]


def make_walls(width: float, depth: float) -> list[Wall]:
    """Return the four walls of a rectangular room."""
    corners = np.array([[0, 0], [width, 0], [width, depth], [0, depth]], np.float64)
    walls = []
    for i in range(4):
        # Counter-clockwise, so that (along, inward, up) is right-handed like a piece's axes.
        a, b = corners[i], corners[(i + 1) % 4]
        length = float(np.linalg.norm(b - a))
        along = (b - a) / length
        inward = np.array([-along[1], along[0]])
        yaw = float(np.arctan2(along[1], along[0]))
        walls.append(Wall(a, along, inward, yaw, length))
    return walls


def wall_finish(kit: Kit, room: str) -> int:
    """Add the finish of the walls: paint, wallpaper or tiles."""
    if kit.chance(0.55):
        # Off-white, cream or grey: what most walls are painted.
        base = hsv(kit.uniform(0.06, 0.15), kit.uniform(0.02, 0.14), kit.uniform(0.8, 0.94))
    else:
        hue = kit.uniform(0, 1)
        base = hsv(hue, kit.uniform(0.06, 0.28), kit.uniform(0.68, 0.9))
    if room in ("bathroom", "kitchen") and kit.chance(0.75):
        w = kit.pick(0.15, 0.2, 0.3)
        h = w * kit.pick(1.0, 1.0, 0.5, 1.5)
        other = base * kit.uniform(0.7, 1.0)
        grout = linear((0.8, 0.8, 0.78)) if kit.chance(0.6) else base * 0.55
        check = float(kit.chance(0.15))
        params = (kit.uniform(0, 1), w, h, 0.005, kit.uniform(0.04, 0.2), check)
        return kit.mats.add(tx.TILES, base, other, grout, params, 0.04)
    style = kit.uniform(0, 1)
    if style < 0.5:
        return kit.paint(base)
    b = base * kit.uniform(0.75, 0.92)
    if style < 0.68:
        return kit.mats.add(tx.STRIPES, base, b, b, (kit.uniform(0.12, 0.4), kit.uniform(0.3, 0.5)))
    if style < 0.82:
        return kit.mats.add(tx.MOTIF, base, b, None, (kit.uniform(0.25, 0.5),))
    if style < 0.9:
        return kit.mats.add(tx.DOTS, base, b, None, (kit.uniform(0.15, 0.3), 0.18))
    brick = hsv(kit.uniform(0.01, 0.06), kit.uniform(0.1, 0.5), kit.uniform(0.55, 0.85))
    params = (kit.uniform(0, 1), 0.24, 0.075, 0.01, 0.5, 0.1)
    return kit.mats.add(tx.PLANKS, brick, brick * 0.75, linear((0.75, 0.72, 0.68)), params)


def floor_finish(kit: Kit, room: str) -> int:
    """Add the finish of the floor: planks, parquet, tiles or carpet."""
    style = kit.uniform(0, 1)
    if room in ("bathroom", "kitchen"):
        style *= 0.45 if kit.chance(0.85) else 1.0
    else:
        style = 0.35 + 0.65 * style
    seed = kit.uniform(0, 1)
    if style < 0.45:
        a = hsv(kit.uniform(0.02, 0.16), kit.uniform(0.05, 0.4), kit.uniform(0.5, 0.88))
        s = kit.pick(0.3, 0.33, 0.45, 0.6)
        grout = linear((0.62, 0.6, 0.57))
        check = float(kit.chance(0.3))
        b = a * kit.uniform(0.35, 0.7)
        return kit.mats.add(tx.TILES, a, b, grout, (seed, s, s, 0.008, 0.14, check), 0.06)
    if style < 0.86:
        tone = (
            kit.wood_tone
            if kit.chance(0.4)
            else linear(
                [(0.8, 0.63, 0.44), (0.66, 0.46, 0.28), (0.5, 0.33, 0.21), (0.74, 0.68, 0.6)][
                    int(kit.rng.integers(4))
                ]
            )
        )
        plank = (kit.uniform(0.9, 1.6), kit.uniform(0.1, 0.18))
        if kit.chance(0.2):
            plank = (0.42, 0.085)
        params = (seed, *plank, 0.004, 0.0, 1.0)
        return kit.mats.add(tx.PLANKS, tone * 1.1, tone * 0.72, tone * 0.3, params, 0.05)
    a = hsv(kit.accent + kit.uniform(-0.1, 0.1), kit.uniform(0.05, 0.35), kit.uniform(0.45, 0.75))
    return kit.mats.add(tx.WEAVE, a, a * 0.85, None, (seed, 0.02))


def build(kit: Kit, room: str, size: tuple[float, float, float], walls: list[Wall]) -> Shell:
    """Build walls around their openings, floor, ceiling, skirting, windows and doors."""
    width, depth, height = size
    finish, ground = wall_finish(kit, room), floor_finish(kit, room)
    accent = finish
    if room in ("bedroom", "living_room", "office", "library") and kit.chance(0.35):
        accent = kit.paint(kit.color(0.4, 0.6))
    top = kit.paint(linear((0.93, 0.93, 0.91)))
    base = Piece(C["floor"], width, depth, height)
    t = WALL_THICK
    base.box((-t, width + t), (-t, depth + t), (-0.2, 0.0), ground, C["floor"], "slab")
    base.box((-t, width + t), (-t, depth + t), (height, height + 0.2), top, C["ceiling"], "slab")
    shell = Shell(width, depth, height, walls, [base])
    chosen = int(kit.rng.integers(4))
    trim = kit.white if kit.chance(0.7) else kit.wood
    cornice = kit.chance(0.4)
    sky = _sky_material(kit)
    for i, wall in enumerate(walls):
        piece = Piece(C["wall"], wall.length, t, height)
        mat = accent if i == chosen else finish
        _fill_wall(piece, wall, height, mat, trim, room != "bathroom")
        if cornice:
            piece.box((0, wall.length), (0, 0.05), (height - 0.06, height), top, C["wall"])
        for gap in wall.openings:
            if gap.kind == "window":
                _window(piece, kit, gap, sky, trim)
            else:
                _door(piece, kit, gap, trim)
        placed = Piece(C["wall"], wall.length, t, height)
        placed.put(piece, float(wall.start[0]), float(wall.start[1]), 0.0, wall.yaw)
        shell.pieces.append(placed)
    return shell


def _sky_material(kit: Kit) -> int:
    """Add what is seen outdoors."""
    blue = hsv(kit.uniform(0.54, 0.6), kit.uniform(0.25, 0.55), kit.uniform(0.85, 0.97))
    haze = hsv(0.57, 0.08, 0.97)
    green = hsv(kit.uniform(0.2, 0.34), kit.uniform(0.3, 0.6), kit.uniform(0.45, 0.65))
    return kit.mats.add(tx.SKY, blue, haze, green, (kit.uniform(0, 1),), glow=0.95)


def _fill_wall(p: Piece, wall: Wall, height: float, mat: int, trim: int, skirt: bool) -> None:
    """Fill a wall with blocks around its openings, and run skirting along it."""
    t, u = WALL_THICK, 0.0
    for gap in sorted(wall.openings, key=lambda g: g.u0):
        p.box((u, gap.u0), (-t, 0), (0, height), mat, shape="slab")
        p.box((gap.u0, gap.u1), (-t, 0), (gap.z1, height), mat, shape="slab")
        if gap.z0 > 0:
            p.box((gap.u0, gap.u1), (-t, 0), (0, gap.z0), mat, shape="slab")
        if skirt:
            p.box((u, gap.u0), (0, 0.01), (0, 0.09), trim)
            if gap.z0 > 0:
                p.box((gap.u0, gap.u1), (0, 0.01), (0, 0.09), trim)
        u = gap.u1
    p.box((u, wall.length), (-t, 0), (0, height), mat, shape="slab")
    if skirt:
        p.box((u, wall.length), (0, 0.01), (0, 0.09), trim)


def _window(p: Piece, kit: Kit, gap: Opening, sky: int, trim: int) -> None:
    """Set a window into its opening: sill, frame, glazing bars and the view."""
    w, (u0, u1, z0, z1) = C["window"], (gap.u0, gap.u1, gap.z0, gap.z1)
    p.box((u0, u1), (-0.135, -0.13), (z0, z1), sky, w, "panel")
    p.box((u0 - 0.04, u1 + 0.04), (-0.12, 0.05), (z0 - 0.03, z0 + 0.01), trim, w)
    ys, f = (-0.13, -0.08), 0.055
    for a, b in ((u0, u0 + f), (u1 - f, u1)):
        p.box((a, b), ys, (z0, z1), trim, w)
    for a, b in ((z0, z0 + f), (z1 - f, z1)):
        p.box((u0, u1), ys, (a, b), trim, w)
    panes = max(1, round((u1 - u0) / 0.75))
    for i in range(1, panes):
        c = u0 + (u1 - u0) * i / panes
        p.box((c - 0.03, c + 0.03), ys, (z0, z1), trim, w)
    if kit.chance(0.4):
        c = z0 + (z1 - z0) * kit.pick(0.5, 0.68)
        p.box((u0, u1), (-0.125, -0.09), (c - 0.02, c + 0.02), trim, w)


def _door(p: Piece, kit: Kit, gap: Opening, trim: int) -> None:
    """Set a panelled door and its frame into an opening."""
    d, (u0, u1, z1) = C["door"], (gap.u0, gap.u1, gap.z1)
    leaf = kit.white if kit.chance(0.5) else kit.wood
    for a, b in ((u0 - 0.07, u0), (u1, u1 + 0.07)):
        p.box((a, b), (-0.05, 0.02), (0, z1 + 0.07), trim, d)
    p.box((u0 - 0.07, u1 + 0.07), (-0.05, 0.02), (z1, z1 + 0.07), trim, d)
    p.box((u0, u1), (-0.1, -0.05), (0, z1), leaf, d)
    rows, cols = int(kit.rng.integers(1, 4)), int(kit.rng.integers(1, 3))
    dw, dh = (u1 - u0 - 0.1) / cols, (z1 - 0.15) / rows
    for i in range(cols):
        for j in range(rows):
            a, c = u0 + 0.05 + i * dw, 0.1 + j * dh
            p.box((a + 0.05, a + dw - 0.05), (-0.05, -0.035), (c + 0.05, c + dh - 0.05), leaf, d)
    hx = u1 - 0.08
    p.rod((hx, -0.05, 1.02), (hx, 0.0, 1.02), 0.012, kit.metal, d)
    p.rod((hx, 0.0, 1.02), (hx - 0.12, 0.0, 1.02), 0.01, kit.metal, d)
