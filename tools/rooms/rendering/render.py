"""Rendering of a room: labels, depth and normals at pixel centres, colour with smooth edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.rooms.materials import patterns as pt
from tools.rooms.rendering import lighting as lt
from tools.rooms.rendering.camera import Camera
from tools.rooms.rendering.irradiance import irradiance_map
from tools.rooms.rendering.mesh import F32
from tools.rooms.rendering.surface import Scene, Surface, cast_surface
from tools.rooms.rendering.tracer import dot

# Positions of the extra samples at edges, in pixels from the centre, which counts as well.
_SUB = ((-0.36, -0.2), (0.36, 0.2))


@dataclass
class Frame:
    """What a camera sees; all maps are [S, S] or [S, S, 3].

    Attributes:
        rgb: sRGB, uint8.
        depth: Planar depth along the optical axis, metres, float32.
        cls: NYU40 class ids, uint8.
        normal: Unit normals in the camera frame (right, up, towards the viewer), float32.
        valid: False where a window pane shows the outdoors.
        focal: Focal length in image widths.
    """

    rgb: NDArray[np.uint8]
    depth: F32
    cls: NDArray[np.uint8]
    normal: F32
    valid: NDArray[np.bool_]
    focal: float


def render(scene: Scene, camera: Camera, size: int) -> Frame:
    """Render a view.

    Args:
        scene: The room.
        camera: The camera.
        size: Width and height in pixels.

    Returns:
        The frame.
    """
    pixel = 1.0 / (camera.focal * size)
    s = cast_surface(scene, camera.eye, camera.grid(size), pixel)
    light = irradiance_map(scene, s, size)
    some = np.flatnonzero(scene.glow[s.material[::6]] == 0) * 6
    lum = (s.color[some] * light[some]).mean(1)
    exposure = np.float32(0.25 / np.exp(np.log(np.maximum(lum, 1e-3)).mean()))
    # Mostly white or mostly dark rooms should look it.
    exposure *= np.float32(np.clip((float(s.color[some].mean()) / 0.35) ** 0.4, 0.75, 1.3))
    ambient = light[some].mean(0)
    full = _display(scene, s, light, exposure, ambient, pixel)
    image = full.reshape(size, size, 3)
    _antialias(scene, camera, s, light, exposure, ambient, image)
    rgb = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    normal = s.normal @ camera.axes.T
    valid = scene.table[s.material, 0] != pt.SKY
    shape = (size, size)
    return Frame(
        rgb,
        s.hits.t.reshape(shape),
        scene.tracer.mesh.cls[s.hits.prim].reshape(shape),
        normal.reshape(size, size, 3),
        valid.reshape(shape),
        camera.focal,
    )


def _display(
    scene: Scene, s: Surface, light: F32, exposure: np.float32, ambient: F32, pixel: float
) -> F32:
    """Return display values (sRGB in 0..1), with reflections, [N, 3]."""
    radiance = s.color * light
    radiance *= exposure
    unit = s.ray / np.sqrt(dot(s.ray, s.ray))[:, None]
    base = scene.gloss[s.material]
    cos = np.clip(-dot(unit, s.normal), 0, 1)
    graze = 1 - cos
    graze *= graze * graze * graze * graze
    share = base + (np.minimum(base * 6, 0.9) - base) * graze
    # Faint reflections are left out: below five per cent nobody sees them.
    share = np.where(share < 0.3, np.maximum(share - 0.05, 0), share)
    at = np.flatnonzero(share > 0.012)
    if len(at):
        n = s.normal[at]
        ray = unit[at] + 2 * cos[at][:, None] * n
        start = s.point[at] + s.face[at] * lt.OFFSET * 2
        r = cast_surface(scene, start, ray, pixel, s.hits.t[at])
        seen = r.color * ambient * exposure
        glow = scene.glow[r.material][:, None]
        seen = np.where(glow > 0, r.color * glow * 1.5, seen)
        k = share[at][:, None]
        radiance[at] = radiance[at] * (1 - k) + seen * k
    # Square root instead of a power of 1 / 2.2: much faster, and a little more contrast.
    shown = np.sqrt(tone(radiance))
    lamp = np.flatnonzero(scene.glow[s.material] > 0)
    if len(lamp):
        glow = scene.glow[s.material[lamp]]
        # Lit shades are brightest where they face the viewer, which keeps them round.
        glow = np.where(glow < 0.94, glow * (0.72 + 0.28 * cos[lamp]), glow)
        shown[lamp] = np.sqrt(np.minimum(s.color[lamp] * glow[:, None], 1))
    return np.asarray(shown, np.float32)


def tone(x: F32) -> F32:
    """Compress linear radiance into 0..1 with a soft shoulder."""
    white = np.float32(6.0)
    out = x * (1 / white**2)
    out += 1
    out *= x
    out /= x + 1
    out *= np.float32(1.25)
    np.clip(out, 0, 1, out=out)
    return np.asarray(out)


def _antialias(
    scene: Scene,
    camera: Camera,
    s: Surface,
    light: F32,
    exposure: np.float32,
    ambient: F32,
    image: F32,
) -> None:
    """Average pixels at visible geometric edges with more samples, in place."""
    size = image.shape[0]
    at = np.flatnonzero(_edges(scene, s, image))
    if not len(at):
        return
    y, x = np.divmod(at, size)
    dx = np.array([d[0] for d in _SUB], np.float32)
    dy = np.array([d[1] for d in _SUB], np.float32)
    fx = ((x[:, None] + 0.5 + dx) / size).astype(np.float32).ravel()
    fy = ((y[:, None] + 0.5 + dy) / size).astype(np.float32).ravel()
    pixel = 1.0 / (camera.focal * size)
    sub = cast_surface(scene, camera.eye, camera.rays(fx, fy), pixel)
    sx, sy = np.sign(dx).astype(np.int64), np.sign(dy).astype(np.int64)
    best = np.full(len(fx), np.inf, np.float32)
    found = np.zeros(len(fx), np.int64)
    for ox, oy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        nx = np.clip(x[:, None] + ox * sx, 0, size - 1)
        ny = np.clip(y[:, None] + oy * sy, 0, size - 1)
        there = (ny * size + nx).ravel()
        diff = s.point[there] - sub.point
        # Which neighbour lies on the surface that the sample has hit?
        cost = dot(diff, diff) + 4 * np.abs(dot(diff, sub.normal))
        cost += 0.5 * (1 - dot(s.normal[there], sub.normal))
        closer = cost < best
        best[closer] = cost[closer]
        found[closer] = there[closer]
    shown = _display(scene, sub, light[found], exposure, ambient, pixel)
    flat = image.reshape(-1, 3)
    shown = shown.reshape(len(at), len(_SUB), 3)
    flat[at] = (flat[at] + shown.sum(1)) / (1 + len(_SUB))


def _edges(scene: Scene, s: Surface, image: F32) -> NDArray[np.bool_]:
    """Find pixels whose neighbour shows another part or facing and another colour, [S * S]."""
    size = image.shape[0]
    part = scene.tracer.mesh.part[s.hits.prim].reshape(size, size)
    normal = s.normal.reshape(size, size, 3)
    edge = np.zeros((size, size), bool)
    for axis in (0, 1):
        a = [slice(None)] * 2
        b = [slice(None)] * 2
        a[axis], b[axis] = slice(0, -1), slice(1, None)
        one, two = tuple(a), tuple(b)
        differ = part[one] != part[two]
        differ |= dot(normal[one], normal[two]) < 0.85
        jump = np.abs(image[one] - image[two])
        differ &= np.maximum(np.maximum(jump[..., 0], jump[..., 1]), jump[..., 2]) > 0.03
        edge[one] |= differ
        edge[two] |= differ
    return edge.ravel()
