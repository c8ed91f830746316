"""Light in a room: windows, lamps, sun and ambient occlusion.

Every pixel of a 2x2 block uses one of four fixed, stratified sample patterns; an edge-aware
filter then averages over such blocks. Shadows are as smooth as with four times the rays, without
noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tools.rooms.rendering.mesh import F32
from tools.rooms.rendering.tracer import Tracer, dot

PATTERNS = 4
GATHER_RAYS, WINDOW_RAYS, LAMP_RAYS, SUN_RAYS = 6, 4, 3, 4
GATHER_REACH = 1.3
OFFSET = np.float32(2e-3)


@dataclass
class Pane:
    """A window pane: corner, its two edges, inward normal (all float32 [3]) and area in m2."""

    corner: F32
    side: F32
    up: F32
    normal: F32
    area: float


@dataclass
class Lights:
    """The light sources of a room.

    Attributes:
        panes: Windows.
        sky: Radiance of the windows, linear RGB [3].
        lamp: Position of the ceiling lamp, float32 [3].
        lamp_color: Intensity of the ceiling lamp, linear RGB [3].
        glows: Positions of small lamps, float32 [G, 3].
        glow_color: Intensity of each small lamp, linear RGB [3].
        sun: Direction to the sun, float32 [3], or None.
        sun_color: Irradiance of the sun, linear RGB [3].
        shift: Per-room shift of the sample patterns, 0 to 1.
    """

    panes: list[Pane]
    sky: F32
    lamp: F32
    lamp_color: F32
    glows: F32
    glow_color: F32
    sun: F32 | None
    sun_color: F32
    shift: float
    _window: F32 = field(init=False)
    _window_normal: F32 = field(init=False)
    _lamp: F32 = field(init=False)
    _dome: F32 = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the sample patterns."""
        x, y = _lattice(PATTERNS * GATHER_RAYS, self.shift)
        r, phi = np.sqrt(x), 2 * np.pi * y
        dome = np.stack([r * np.cos(phi), r * np.sin(phi), np.sqrt(1 - x)], 1)
        self._dome = _deal(dome, GATHER_RAYS)
        a, b = _lattice(PATTERNS * LAMP_RAYS, self.shift)
        r, phi = 0.17 * np.sqrt(a), 2 * np.pi * b
        disc = np.stack([r * np.cos(phi), r * np.sin(phi), 0 * r], 1) + self.lamp
        self._lamp = _deal(disc, LAMP_RAYS)
        a, b = _lattice(PATTERNS * WINDOW_RAYS, self.shift)
        points, normals = np.zeros((len(a), 3)), np.zeros((len(a), 3))
        if self.panes:
            total = sum(p.area for p in self.panes)
            edges = np.cumsum([0.0] + [p.area / total for p in self.panes])
            for pane, low, high in zip(self.panes, edges[:-1], edges[1:], strict=True):
                at = (a >= low) & ((a < high) | (high > 1 - 1e-9))
                s = ((a[at] - low) / (high - low))[:, None]
                points[at] = pane.corner + s * pane.side + b[at][:, None] * pane.up
                normals[at] = pane.normal
        self._window = _deal(points, WINDOW_RAYS)
        self._window_normal = _deal(normals, WINDOW_RAYS)


def _lattice(n: int, shift: float) -> tuple[F32, F32]:
    """Return n well-spread points of the unit square (a shifted golden-ratio lattice)."""
    i = np.arange(n)
    return (i + 0.5) / n, (i * 0.6180339887498949 + shift) % 1.0


def _deal(points: F32, rays: int) -> F32:
    """Deal points to the patterns in turn: [PATTERNS, rays, 3]."""
    return np.ascontiguousarray(
        points.reshape(rays, PATTERNS, 3).transpose(1, 0, 2).astype(np.float32)
    )


def direct(
    tracer: Tracer, lights: Lights, point: F32, normal: F32, face: F32, pattern: NDArray[np.int64]
) -> F32:
    """Return the irradiance from windows and the ceiling lamp with soft shadows, [N, 3].

    Args:
        tracer: The scene.
        lights: Its lights.
        point: Surface points, [N, 3].
        normal: Shading normals, [N, 3].
        face: Face normals, [N, 3].
        pattern: Which sample pattern each point uses, [N] in 0..3.
    """
    start = point + face * OFFSET
    out = np.zeros((len(point), 3), np.float32)
    area = np.float32(sum(p.area for p in lights.panes))
    # Ceilings see windows past blinds and the lamp past its own shade. Few samples would cast
    # shadows of those in blotches, while hardly anything else ever shades a ceiling.
    ceiling = face[:, 2] < -0.99
    for k in range(WINDOW_RAYS if lights.panes else 0):
        to = lights._window[pattern, k] - start
        d2 = dot(to, to)
        cos = dot(to, normal)
        back = -dot(to, lights._window_normal[pattern, k])
        gain = np.maximum(cos, 0) * np.maximum(back, 0) / np.maximum(d2 * d2, 0.05)
        lit = np.flatnonzero(gain > 1e-4)
        seen = _seen(tracer, start[lit], to[lit], ceiling[lit])
        out[lit] += (gain[lit] * seen * (area / WINDOW_RAYS))[:, None] * lights.sky
    for k in range(LAMP_RAYS):
        to = lights._lamp[pattern, k] - start
        d2 = dot(to, to)
        cos = dot(to, normal) / np.sqrt(d2)
        lit = np.flatnonzero(cos > 1e-3)
        seen = _seen(tracer, start[lit], to[lit], ceiling[lit])
        gain = cos[lit] / np.maximum(d2[lit], 0.15) * seen / np.float32(LAMP_RAYS)
        out[lit] += gain[:, None] * lights.lamp_color
    return out


def _seen(tracer: Tracer, start: F32, to: F32, skip: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which light samples are not hidden; those of points in `skip` never are."""
    seen = np.ones(len(start), bool)
    test = np.flatnonzero(~skip)
    seen[test] = ~tracer.blocked(start[test], to[test], 0.97)
    return seen


def small_lamps(lights: Lights, point: F32, normal: F32) -> F32:
    """Return the irradiance from small lamps, which cast no shadow, [N, 3]."""
    out = np.zeros((len(point), 3), np.float32)
    for spot in lights.glows:
        to = spot - point
        d2 = dot(to, to)
        cos = np.clip(0.25 + 0.75 * dot(to, normal) / np.sqrt(d2 + 1e-6), 0, 1)
        out += (cos / (d2 + 0.12))[:, None] * lights.glow_color
    return out


def gather(
    tracer: Tracer,
    lights: Lights,
    albedo: F32,
    point: F32,
    normal: F32,
    face: F32,
    pattern: NDArray[np.int64],
) -> F32:
    """Return the fraction of the room's ambient light that reaches points, per channel, [N, 3].

    Rays that hit something near contribute its dimmed colour; others contribute full light.

    Args:
        tracer: The scene.
        lights: Its lights, for the sample patterns.
        albedo: Mean colour of each material, [M, 3].
        point: Surface points, [N, 3].
        normal: Shading normals, [N, 3].
        face: Face normals, [N, 3].
        pattern: Which sample pattern each point uses, [N] in 0..3.
    """
    n, k = len(point), GATHER_RAYS
    sign = np.where(normal[:, 2] >= 0, np.float32(1), np.float32(-1))
    a = -1 / (sign + normal[:, 2])
    b = normal[:, 0] * normal[:, 1] * a
    t1 = np.stack([1 + sign * normal[:, 0] ** 2 * a, sign * b, -sign * normal[:, 0]], 1)
    t2 = np.stack([b, sign + normal[:, 1] ** 2 * a, -normal[:, 1]], 1)
    frame = np.stack([t1, t2, normal], axis=1)
    ray = np.matmul(lights._dome[pattern], frame).reshape(-1, 3)
    start = np.repeat(point + face * OFFSET, k, axis=0)
    hits = tracer.cast(start, ray, GATHER_REACH)
    # Light comes from above rather than from below, which gives plain bodies some shape.
    full = 1 + np.float32(0.22) * ray[:, 2]
    near = np.flatnonzero(hits.prim >= 0)
    x = np.minimum(hits.t[near] / np.float32(GATHER_REACH), 1)
    w = x * (2 - x)
    color = albedo[tracer.mesh.material[hits.prim[near]]]
    # Occluded light at each point, summed over its rays.
    loss = ((1 - w) * full[near])[:, None] * (1 - np.float32(0.65) * color)
    who = near // k
    out = np.empty((n, 3), np.float32)
    total = full.reshape(n, k) @ np.ones(k, np.float32)
    for c in range(3):
        out[:, c] = (total - np.bincount(who, loss[:, c], n)) / k
    return out


def sunlight(tracer: Tracer, lights: Lights, point: F32, normal: F32, face: F32) -> F32:
    """Return the irradiance of the sun through the windows, [N, 3]."""
    out = np.zeros((len(point), 3), np.float32)
    if lights.sun is None:
        return out
    cos = normal @ lights.sun
    for pane in lights.panes:
        toward = float(lights.sun @ pane.normal)
        if toward > -0.05:
            continue
        t = ((pane.corner - point) @ pane.normal) / np.float32(toward)
        cross = point + t[:, None] * lights.sun - pane.corner
        s = cross @ pane.side / np.float32(pane.side @ pane.side)
        h = cross @ pane.up / np.float32(pane.up @ pane.up)
        edge = 0.03
        inside = (s > -edge) & (s < 1 + edge) & (h > -edge) & (h < 1 + edge) & (cos > 0) & (t > 0)
        at = np.flatnonzero(inside)
        if not len(at):
            continue
        start = point[at] + face[at] * OFFSET
        share = np.zeros(len(at), np.float32)
        x, y = _lattice(SUN_RAYS, lights.shift)
        for i in range(SUN_RAYS):
            spread = 0.02 * np.array([x[i] - 0.5, y[i] - 0.5, 0.0], np.float32)
            ray = (lights.sun + spread).astype(np.float32)
            to = ray * (t[at][:, None] * np.float32(0.98))
            # The pane itself stands for the outdoors: whether the ray leaves by it is geometry.
            end = start + to - pane.corner
            si = end @ pane.side / np.float32(pane.side @ pane.side)
            hi = end @ pane.up / np.float32(pane.up @ pane.up)
            passes = (si > 0) & (si < 1) & (hi > 0) & (hi < 1)
            share += passes & ~tracer.blocked(start, to, 1.0)
        out[at] += (share / SUN_RAYS * cos[at])[:, None] * lights.sun_color
    return out


def smooth(light: F32, normal: F32, point: F32, depth: F32) -> F32:
    """Filter an image of irradiance without crossing edges.

    Args:
        light: Irradiance, [H, W, C].
        normal: Normals, [H, W, 3].
        point: Positions, [H, W, 3].
        depth: Depth, [H, W], which sets the tolerance.

    Returns:
        The filtered image. A step of one pixel cancels the 2x2 sample patterns.
    """
    scale = 1 / (0.012 * depth + 0.004)
    for step in (1, 2):
        for axis in (0, 1):
            total = np.full(depth.shape, 2, np.float32)
            acc = light * 2
            for side in (-step, step):
                weight = _affinity(normal, point, scale, side, axis)
                acc += np.roll(light, side, axis) * weight[..., None]
                total += weight
            light = acc / total[..., None]
    return light


def _affinity(normal: F32, point: F32, scale: F32, shift: int, axis: int) -> F32:
    """Return how much each pixel shares a surface with the one `shift` before it."""
    diff = np.roll(point, shift, axis) - point
    plane = np.abs(dot(diff, normal)) * scale
    facing = dot(np.roll(normal, shift, axis), normal)
    weight = np.clip(1.5 - plane, 0, 1) * np.clip(facing * 4 - 3, 0, 1)
    edge = [slice(None)] * 2
    edge[axis] = slice(0, shift) if shift > 0 else slice(shift, None)
    weight[tuple(edge)] = 0
    return np.asarray(weight, np.float32)
