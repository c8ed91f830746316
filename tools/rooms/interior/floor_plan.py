"""Placing furniture in a room without intersections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tools.rooms.furniture.sh3f import ModelLibrary
from tools.rooms.interior.shell import Opening, Shell, Wall
from tools.rooms.materials.palette import Kit
from tools.rooms.rendering.mesh import Piece

Box = tuple[float, float, float, float, float, float]
GAP = 0.025


@dataclass
class Spot:
    """Where a piece was put: floor position, turn, and the wall it stands at, if any."""

    piece: Piece
    x: float
    y: float
    z: float
    yaw: float
    wall: Wall | None = None
    u: float = 0.0

    def local(self, x: float, y: float) -> tuple[float, float]:
        """Turn the piece's own (x, y) into room coordinates."""
        c, s = float(np.cos(self.yaw)), float(np.sin(self.yaw))
        return self.x + c * x - s * y, self.y + s * x + c * y


@dataclass
class FloorPlan:
    """A room being furnished.

    Attributes:
        kit: Materials and random choices.
        shell: The empty room.
        split: "train" or "val": which models of the library may be used.
        library: Imported models, used in place of parametric pieces where there are any.
        boxes: Space taken, as (x0, y0, z0, x1, y1, z1).
        pieces: The placed pieces, in room coordinates.
        focus: Points worth looking at, (x, y).
    """

    kit: Kit
    shell: Shell
    split: str
    library: ModelLibrary | None
    boxes: list[Box] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    focus: list[tuple[float, float]] = field(default_factory=list)

    def make(
        self,
        cls: str,
        builder: Callable[[Kit], Piece],
        room: tuple[float, float, float] = (2.4, 1.2, 2.3),
    ) -> Piece:
        """Return a model of the class from the library if it has one, else build a piece.

        Args:
            cls: Catalogue key of the library, for example "chair" or "bed".
            builder: Builds the parametric piece.
            room: Largest width, depth and height of a model, metres.
        """
        if self.library is not None and self.kit.chance(0.85):
            model = self.library.draw(cls, self.split, self.kit, room)
            if model is not None:
                return model
        return builder(self.kit)

    def free(self, box: Box, margin: float = 0.0) -> bool:
        """Tell whether a box lies inside the room and touches nothing."""
        x0, y0, z0, x1, y1, z1 = box
        if x0 < -1e-6 or y0 < -1e-6 or x1 > self.shell.width or y1 > self.shell.depth:
            return False
        if z1 > self.shell.height:
            return False
        return not any(
            x0 - margin < b[3]
            and b[0] < x1 + margin
            and y0 - margin < b[4]
            and b[1] < y1 + margin
            and z0 < b[5]
            and b[2] < z1
            for b in self.boxes
        )

    def bounds(self, spot: Spot) -> Box:
        """Return the axis-aligned box around a placed piece."""
        p = spot.piece
        pts = [spot.local(sx * p.width / 2, y) for sx in (-1, 1) for y in (0.0, p.depth)]
        xs, ys = [a for a, _ in pts], [b for _, b in pts]
        return (min(xs), min(ys), spot.z, max(xs), max(ys), spot.z + p.height)

    def put(self, spot: Spot, solid: bool = True) -> Spot:
        """Place a piece without a collision test."""
        p = spot.piece
        placed = Piece(p.cls, p.width, p.depth, p.height)
        placed.put(p, spot.x, spot.y, spot.z, spot.yaw)
        self.pieces.append(placed)
        if solid:
            self.boxes.append(self.bounds(spot))
        return spot

    def _clear_of_openings(self, wall: Wall, u: float, p: Piece, z: float) -> bool:
        """Tell whether a piece at u covers no window or door."""
        return not any(
            u - p.width / 2 < g.u1 + 0.08
            and g.u0 - 0.08 < u + p.width / 2
            and z < g.z1
            and g.z0 < z + p.height
            for g in wall.openings
        )

    def try_wall(self, p: Piece, wall: Wall, u: float, z: float, front: float) -> Spot | None:
        """Place a piece with its back to a wall at u, if it fits with `front` metres free."""
        if u - p.width / 2 < GAP or u + p.width / 2 > wall.length - GAP:
            return None
        if not self._clear_of_openings(wall, u, p, z):
            return None
        x, y = wall.at(u, GAP if z == 0 else 0.002)
        spot = Spot(p, x, y, z, wall.yaw, wall, u)
        deep = Spot(Piece(p.cls, p.width, p.depth + front, p.height), x, y, z, wall.yaw)
        return self.put(spot) if self.free(self.bounds(deep)) else None

    def against(
        self,
        p: Piece,
        z: float = 0.0,
        front: float = 0.25,
        walls: list[Wall] | None = None,
        middle: bool = False,
        tries: int = 14,
    ) -> Spot | None:
        """Place a piece with its back to some wall.

        Args:
            p: The piece.
            z: Height of its foot, metres.
            front: Space to keep free before it, metres.
            walls: Walls to try, in random order.
            middle: Prefer the middle of the wall.
            tries: Number of positions tried.

        Returns:
            Where it stands, or None when it found no room.
        """
        walls = self.shell.walls if walls is None else walls
        rng = self.kit.rng
        for i in range(tries):
            wall = walls[int(rng.integers(len(walls)))]
            span = wall.length - p.width - 2 * GAP
            if span < 0:
                continue
            t = 0.5 if middle and i < tries // 2 else float(rng.uniform())
            if not middle and i % 3 == 0:
                t = float(rng.integers(2))
            u = p.width / 2 + GAP + t * span
            spot = self.try_wall(p, wall, u, z, front)
            if spot is not None:
                return spot
        return None

    def beside(self, p: Piece, spot: Spot, side: int, gap: float = 0.04) -> Spot | None:
        """Place a piece next to another along the same wall; side is -1 or 1."""
        if spot.wall is None:
            return None
        u = spot.u + side * (spot.piece.width / 2 + p.width / 2 + gap)
        return self.try_wall(p, spot.wall, u, 0.0, 0.0)

    def on_floor(
        self, p: Piece, x: float, y: float, yaw: float, margin: float = 0.0
    ) -> Spot | None:
        """Place a piece with its centre at (x, y), if there is room."""
        c, s = float(np.cos(yaw)), float(np.sin(yaw))
        spot = Spot(p, x + s * p.depth / 2, y - c * p.depth / 2, 0.0, yaw)
        return self.put(spot) if self.free(self.bounds(spot), margin) else None

    def scatter(self, p: Piece, tries: int = 8) -> Spot | None:
        """Stand a small piece in a corner or along a wall."""
        return self.against(p, 0.0, 0.05, tries=tries)

    def hang(self, p: Piece, z: float, walls: list[Wall] | None = None) -> Spot | None:
        """Hang a piece on a wall with its foot at height z."""
        return self.against(p, z, 0.0, walls, middle=True)

    def above(self, p: Piece, spot: Spot, z: float) -> Spot | None:
        """Hang a piece over another that stands at a wall."""
        if spot.wall is None:
            return None
        return self.try_wall(p, spot.wall, spot.u, z, 0.0)

    def add_focus(self, spot: Spot | None) -> None:
        """Add a piece to the points that views may look at."""
        if spot is not None:
            self.focus.append(spot.local(0.0, spot.piece.depth / 2))


def cut_openings(kit: Kit, walls: list[Wall], height: float, room: str) -> Box:
    """Cut a door and one to three windows.

    Returns:
        The space to keep free before the door.
    """
    order = list(kit.rng.permutation(4))
    door = walls[int(order[0])]
    w = kit.uniform(0.8, 0.95)
    u = kit.uniform(0.15, 0.4) if kit.chance(0.5) else door.length - w - kit.uniform(0.15, 0.4)
    door.openings.append(Opening("door", u, u + w, 0.0, 2.05))
    count = 1 if room == "bathroom" else int(kit.rng.integers(1, 4))
    for i in order[1 : 1 + count]:
        wall = walls[int(i)]
        small = room == "bathroom"
        ww = kit.uniform(0.6, 0.9) if small else kit.uniform(1.1, min(2.4, wall.length * 0.6))
        low = 1.25 if small else (kit.uniform(0.85, 1.0) if kit.chance(0.75) else 0.35)
        if room == "kitchen":
            low = max(low, 1.08)
        start = (wall.length - ww) * kit.uniform(0.3, 0.7)
        top = min(height - 0.25, kit.uniform(2.0, 2.25))
        wall.openings.append(Opening("window", start, start + ww, low, top))
    (x0, y0), (x1, y1) = door.at(u - 0.1, 0.0), door.at(u + w + 0.1, 0.85)
    return (min(x0, x1), min(y0, y1), 0.0, max(x0, x1), max(y0, y1), 2.1)
