"""Pinhole camera, and the choice of a good view of a room."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.rooms.classes import CLASS_IDS
from tools.rooms.interior.floor_plan import FloorPlan
from tools.rooms.rendering.mesh import F32
from tools.rooms.rendering.tracer import Tracer

_PLAIN = np.array([CLASS_IDS[n] for n in ("wall", "floor", "ceiling", "curtain", "door")])
_SHELL = _PLAIN[:3]
# Classes that must be visible in each type of room, to make it recognizable.
_KEYS: dict[str, tuple[str, ...]] = {
    "bathroom": ("bathtub", "toilet", "sink"),
    "bedroom": ("bed", "pillow"),
    "dining_room": ("table", "chair"),
    "kitchen": ("counter", "refrigerator", "sink", "cabinet"),
    "library": ("bookshelf", "books"),
    "living_room": ("sofa", "television"),
    "office": ("desk",),
}
PROBE = 18
# Horizontal; RGB-D cameras have about 57.
FOV_DEGREES = (50.0, 66.0)
CANDIDATES = 7


@dataclass
class Camera:
    """A pinhole camera.

    Attributes:
        eye: Position, float32 [3].
        axes: Rows right, up and backward (towards the viewer), float32 [3, 3].
        focal: Focal length in image widths.
    """

    eye: F32
    axes: F32
    focal: float

    def rays(self, x: F32, y: F32) -> F32:
        """Return directions through image points.

        Args:
            x: 0 at the left edge, 1 at the right, [N].
            y: 0 at the top edge, 1 at the bottom, [N].

        Returns:
            Directions of length 1 along the optical axis (so that distance along them is
            planar depth), float32 [N, 3].
        """
        f = np.float32(1 / self.focal)
        right, up, back = self.axes
        u, v = (x - np.float32(0.5)) * f, (np.float32(0.5) - y) * f
        return np.asarray(u[:, None] * right + v[:, None] * up - back, np.float32)

    def grid(self, size: int) -> F32:
        """Return the rays through the centres of size x size pixels, row by row."""
        c = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
        y, x = np.meshgrid(c, c, indexing="ij")
        return self.rays(x.ravel(), y.ravel())


def look_at(eye: NDArray[np.float64], target: NDArray[np.float64], fov: float) -> Camera:
    """Return a level camera (no roll) at `eye` that looks at `target`; fov in radians."""
    back = eye - target
    back = back / np.linalg.norm(back)
    right = np.cross(np.array([0.0, 0.0, 1.0]), back)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(back, right), back]).astype(np.float32)
    return Camera(eye.astype(np.float32), axes, float(0.5 / np.tan(fov / 2)))


def _draw_view(plan: FloorPlan, rng: np.random.Generator) -> Camera | None:
    """Draw a view from a free spot near the edge of the room towards the furniture."""
    w, d = plan.shell.width, plan.shell.depth
    for _ in range(12):
        t = rng.uniform(0, 2 * np.pi)
        # Near the walls: views from the middle see too little.
        x = w / 2 + np.cos(t) * (w / 2 - rng.uniform(0.25, 0.6)) * 1.25
        y = d / 2 + np.sin(t) * (d / 2 - rng.uniform(0.25, 0.6)) * 1.25
        x, y = float(np.clip(x, 0.25, w - 0.25)), float(np.clip(y, 0.25, d - 0.25))
        eye_z = float(rng.uniform(1.3, 1.7))
        m = 0.16
        at = (x - m, y - m, 0.75, x + m, y + m, eye_z + 0.2)
        if not any(
            at[0] < b[3] and b[0] < at[3] and at[1] < b[4] and b[1] < at[4] and b[5] > 0.75
            for b in plan.boxes[1:]
        ):
            break
    else:
        return None
    far = [f for f in plan.focus if np.hypot(f[0] - x, f[1] - y) > 1.2]
    goal = np.array([w / 2, d / 2])
    if far:
        pick = np.array(far[int(rng.integers(len(far)))])
        goal = goal + (pick - goal) * rng.uniform(0.2, 0.9)
    reach = max(float(np.hypot(goal[0] - x, goal[1] - y)), 0.8)
    drop = np.tan(np.radians(rng.uniform(3, 17))) * reach
    eye, target = np.array([x, y, eye_z]), np.array([goal[0], goal[1], eye_z - drop])
    return look_at(eye, target, np.radians(rng.uniform(*FOV_DEGREES)))


def _score(tracer: Tracer, camera: Camera, room: str) -> float:
    """Score a view by a coarse rendering; negative means unacceptable."""
    ray = camera.grid(PROBE)
    hits = tracer.cast(np.repeat(camera.eye[None], len(ray), 0), ray)
    if (hits.prim < 0).any():
        return -1.0
    cls = tracer.mesh.cls[hits.prim]
    count = np.bincount(cls, minlength=41) / len(cls)
    things = 1 - float(count[_PLAIN].sum())
    largest = float(np.delete(count, _SHELL).max())
    near, middle = float(hits.t.min()), float(np.median(hits.t))
    if near < 0.45 or middle < 1.3 or things < 0.22 or largest > 0.42:
        return -1.0
    if float(count[CLASS_IDS["window"]]) > 0.25 or float(np.mean(hits.t < 0.9)) > 0.2:
        return -1.0
    key = float(count[[CLASS_IDS[n] for n in _KEYS[room]]].sum())
    if key < 0.045:
        return -1.0
    kinds = int((count > 0.008).sum())
    return things + 0.09 * min(kinds, 10) + 0.1 * min(middle, 3.0) + min(key, 0.3)


def choose_view(
    plan: FloorPlan, tracer: Tracer, rng: np.random.Generator, room: str
) -> Camera | None:
    """Choose the best of some random views; None if none is acceptable.

    Args:
        plan: The furnished room.
        tracer: Its geometry.
        rng: Random source.
        room: Type of the room.
    """
    best, camera = 0.0, None
    for _ in range(CANDIDATES):
        view = _draw_view(plan, rng)
        if view is None:
            continue
        score = _score(tracer, view, room) * float(rng.uniform(0.8, 1.0))
        if score > best:
            best, camera = score, view
    return camera
