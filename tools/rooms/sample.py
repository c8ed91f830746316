"""One sample: a room, furnished, lit and rendered, from (seed, split, index) alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tools.rooms.classes import ROOM_TYPES
from tools.rooms.furniture.sh3f import ModelLibrary
from tools.rooms.interior import recipes
from tools.rooms.interior.floor_plan import FloorPlan, cut_openings
from tools.rooms.interior.shell import build, make_walls
from tools.rooms.materials.palette import Kit
from tools.rooms.materials.textures import Materials
from tools.rooms.rendering.camera import choose_view
from tools.rooms.rendering.lighting import Lights, Pane
from tools.rooms.rendering.mesh import F32, expand
from tools.rooms.rendering.render import Frame, render
from tools.rooms.rendering.surface import Scene
from tools.rooms.rendering.tracer import Tracer

SPLITS = ("train", "val")
MAX_ATTEMPTS = 40
LUMA = (62.0, 190.0)


class RenderError(RuntimeError):
    """No acceptable view was found."""


@dataclass
class RoomSample:
    """A rendered room.

    Attributes:
        rgb: sRGB, uint8 [S, S, 3].
        depth_mm: Planar depth along the optical axis, millimetres, uint16 [S, S].
        semseg: NYU40 class ids 1 to 40, uint8 [S, S].
        normals: Camera-frame normals n * 0.5 + 0.5 as uint8 [S, S, 3]; x right, y up, z
            towards the viewer.
        mask_valid: 255 where depth is valid, 0 where a window pane shows the outdoors (depth
            and normals are those of the pane there), uint8 [S, S].
        room_type: One of ROOM_TYPES.
        focal: Focal length in image widths.
    """

    rgb: NDArray[np.uint8]
    depth_mm: NDArray[np.uint16]
    semseg: NDArray[np.uint8]
    normals: NDArray[np.uint8]
    mask_valid: NDArray[np.uint8]
    room_type: str
    focal: float

    def ray_length(self) -> F32:
        """Return the length of the ray through each pixel per unit of planar depth, [S, S]."""
        size = len(self.depth_mm)
        c = ((np.arange(size) + 0.5) / size - 0.5) / self.focal
        return np.sqrt(1 + c[None] ** 2 + c[:, None] ** 2).astype(np.float32)

    def depth_euclidean_mm(self) -> F32:
        """Return the distance from the camera, millimetres, float32 [S, S]."""
        return np.asarray(self.depth_mm.astype(np.float32) * self.ray_length(), np.float32)

    def reshading(self) -> NDArray[np.uint8]:
        """Return the shading of a white surface lit from the camera, uint8 [S, S]."""
        n = self.normals.astype(np.float32) / 127.5 - 1
        size = len(n)
        c = (((np.arange(size) + 0.5) / size - 0.5) / self.focal).astype(np.float32)
        dot = -n[..., 0] * c[None] + n[..., 1] * c[:, None] + n[..., 2]
        return np.asarray(np.clip(dot / self.ray_length() * 255, 0, 255), np.uint8)

    def edge_texture(self) -> NDArray[np.uint16]:
        """Return the gradient of the blurred grey image, 65535 for a black-white step."""
        grey = ndimage.gaussian_filter(self.rgb.astype(np.float32).mean(-1) / 255, 1.0)
        grad = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) / 2
        return np.asarray(np.clip(grad * 65535, 0, 65535), np.uint16)

    def edge_occlusion(self) -> NDArray[np.uint16]:
        """Return jumps of depth, 65535 for a jump of half a metre or more."""
        depth = self.depth_mm.astype(np.float32)
        jump = np.zeros_like(depth)
        for axis in (0, 1):
            # The second difference is zero on planes of any slope.
            bend = np.abs(ndimage.correlate1d(depth, [1, -2, 1], axis, mode="nearest"))
            jump = np.maximum(jump, bend)
        return np.clip(jump / 500 * 65535, 0, 65535).astype(np.uint16)


def room_type(index: int) -> str:
    """Return the room type of an index; the types alternate."""
    return ROOM_TYPES[index % len(ROOM_TYPES)]


def render_room(
    seed: int, split: str, index: int, size: int, library: ModelLibrary | None = None
) -> RoomSample:
    """Render one room.

    Args:
        seed: Seed of the data set.
        split: "train" or "val"; the two never share a room, nor an imported model.
        index: Number of the sample, from 0.
        size: Width and height in pixels, at least 16.
        library: Imported furniture, used in place of most parametric pieces.

    Returns:
        The sample, a function of the arguments alone.

    Raises:
        ValueError: split, index or size is out of range.
        RenderError: No acceptable view was found in 40 rooms.
        TracerMissingError: embreex is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if index < 0 or size < 16:
        raise ValueError(f"index must be >= 0 and size >= 16, got {index} and {size}")
    kind = room_type(index)
    root = np.random.SeedSequence([seed, SPLITS.index(split), index])
    for child in root.spawn(MAX_ATTEMPTS):
        frame = _attempt(np.random.default_rng(child), kind, split, size, library)
        if frame is None:
            continue
        luma = float(frame.rgb.mean())
        if LUMA[0] <= luma <= LUMA[1] and float((frame.rgb.max(-1) < 12).mean()) < 0.2:
            return _sample(frame, kind)
    raise RenderError(f"no acceptable view for seed {seed}, {split} {index}")


def _attempt(
    rng: np.random.Generator, kind: str, split: str, size: int, library: ModelLibrary | None
) -> Frame | None:
    """Furnish a room and render its best view; None if no view is acceptable."""
    mats = Materials()
    kit = Kit(rng, mats)
    (w0, w1), (d0, d1) = recipes.SIZES[kind]
    width, depth, height = kit.uniform(w0, w1), kit.uniform(d0, d1), kit.uniform(2.45, 2.9)
    walls = make_walls(width, depth)
    entry = cut_openings(kit, walls, height, kind)
    shell = build(kit, kind, (width, depth, height), walls)
    plan = FloorPlan(kit, shell, split, library)
    plan.boxes.append(entry)
    recipes.furnish(plan, kind)
    mesh = expand(shell.pieces + plan.pieces, int(rng.integers(2**31)))
    tracer = Tracer(mesh)
    camera = choose_view(plan, tracer, rng, kind)
    if camera is None:
        return None
    return render(Scene(tracer, mats, _lights(plan)), camera, size)


def _lights(plan: FloorPlan) -> Lights:
    """Set up daylight, lamps and perhaps the sun."""
    kit, shell = plan.kit, plan.shell
    panes = []
    for wall in shell.walls:
        for gap in wall.openings:
            if gap.kind == "window":
                x, y = wall.at(gap.u0, -0.125)
                corner = np.array([x, y, gap.z0], np.float32)
                side = np.array([*(wall.along * (gap.u1 - gap.u0)), 0.0], np.float32)
                up = np.array([0, 0, gap.z1 - gap.z0], np.float32)
                inward = np.array([*wall.inward, 0.0], np.float32)
                area = (gap.u1 - gap.u0) * (gap.z1 - gap.z0)
                panes.append(Pane(corner, side, up, inward, area))
    total = sum(p.area for p in panes)
    day = kit.uniform(0.5, 1.3)
    sky = np.array([0.93, 1.0, 1.1], np.float32) * np.float32(5.0 * day / max(total, 1.5) ** 0.5)
    warm = kit.uniform(0.0, 1.0)
    tint = np.array([1.0, 0.95 - 0.12 * warm, 0.88 - 0.26 * warm], np.float32)
    drop = 0.62
    lamp = np.array([shell.width / 2, shell.depth / 2, shell.height - drop], np.float32)
    power = np.float32(kit.uniform(1.5, 4.0) * (shell.width * shell.depth / 14) ** 0.5)
    glows = np.array([g for p in plan.pieces for g in p.glow], np.float32).reshape(-1, 3)
    sun = None
    if panes and kit.chance(0.45):
        pane = panes[int(kit.rng.integers(len(panes)))]
        aside = kit.uniform(-0.7, 0.7)
        across = pane.side / np.linalg.norm(pane.side)
        toward = -pane.normal + aside * across + np.array([0, 0, kit.uniform(0.45, 1.0)])
        sun = (toward / np.linalg.norm(toward)).astype(np.float32)
    return Lights(
        panes,
        sky,
        lamp,
        tint * power,
        glows,
        np.array([0.32, 0.25, 0.15], np.float32),
        sun,
        np.array([1.0, 0.9, 0.72], np.float32) * np.float32(kit.uniform(4.0, 7.0) * day),
        kit.uniform(0, 1),
    )


def _sample(frame: Frame, kind: str) -> RoomSample:
    """Quantise a frame."""
    return RoomSample(
        frame.rgb,
        np.clip(frame.depth * 1000 + 0.5, 1, 65535).astype(np.uint16),
        frame.cls,
        np.clip((frame.normal * 0.5 + 0.5) * 255 + 0.5, 0, 255).astype(np.uint8),
        np.where(frame.valid, 255, 0).astype(np.uint8),
        kind,
        frame.focal,
    )
