"""Parametric kitchen units and white goods."""

from __future__ import annotations

from tools.rooms.classes import CLASS_IDS as C
from tools.rooms.furniture.storage import fronts
from tools.rooms.materials.palette import Kit, hsv
from tools.rooms.rendering.mesh import Piece, rot_x, rot_y


def counter_run(kit: Kit, width: float, sink: bool, stove: bool) -> Piece:
    """Build base units with a worktop, a sink, a stove and things standing about."""
    d, h, x = 0.62, 0.9, width / 2
    p = Piece(C["cabinet"], width, d, h)
    p.box((-x, x), (0, d - 0.08), (0, 0.1), kit.dark)
    n = max(1, round(width / 0.55))
    unit = width / n
    oven = int(kit.rng.integers(n)) if stove else -1
    basin = (oven + 1 + int(kit.rng.integers(max(1, n - 1)))) % n if sink else -1
    for i in range(n):
        a = -x + i * unit
        # Below the basin the carcass stops short, or it would fill it.
        p.box((a, a + unit), (0, d - 0.04), (0.1, h - (0.22 if i == basin else 0.04)), kit.front)
        if i == oven:
            _stove(p, kit, a, unit, d, h)
            p.marks["stove"] = a + unit / 2
        else:
            drawers = i != basin and kit.chance(0.35)
            fronts(
                p,
                kit,
                (a, a + unit),
                d - 0.04,
                (0.12, h - 0.05),
                (1, 3 if drawers else 1),
                kit.front,
                drawers,
            )
    top = kit.stone
    if basin < 0:
        p.box((-x - 0.01, x + 0.01), (0, d + 0.01), (h - 0.04, h), top, C["counter"])
    else:
        _sink_top(p, kit, (-x - 0.01, x + 0.01), -x + (basin + 0.5) * unit, d, h, top)
    spots = [i for i in range(n) if i not in (oven, basin)]
    for i in spots:
        _counter_things(p, kit, -x + (i + 0.5) * unit, h)
    if oven >= 0 and kit.chance(0.6):
        c = -x + (oven + 0.3) * unit
        p.box(
            (c - 0.1, c + 0.1), (0.1, 0.3), (h + 0.01, h + 0.14), kit.metal, C["otherprop"], "cyl"
        )
        p.rod((c, 0.3, h + 0.12), (c + 0.05, 0.5, h + 0.13), 0.01, kit.dark, C["otherprop"])
    return p


def _stove(p: Piece, kit: Kit, a: float, unit: float, d: float, h: float) -> None:
    """Build an oven below four hobs into the unit that starts at x = a."""
    other = C["otherfurniture"]
    p.box((a + 0.01, a + unit - 0.01), (d - 0.04, d - 0.02), (0.12, 0.86), kit.metal, other)
    inner = (a + 0.06, a + unit - 0.06)
    p.box(inner, (d - 0.03, d - 0.012), (0.25, 0.62), kit.dark, other)
    p.box(inner, (d - 0.02, d + 0.02), (0.67, 0.69), kit.metal, other)
    for j in range(4):
        x = a + unit * (0.2 + 0.2 * j)
        p.rod((x, d - 0.02, 0.78), (x, d + 0.01, 0.78), 0.02, kit.dark, other)
        x, y = a + unit * (0.3 + 0.4 * (j % 2)), 0.2 + 0.22 * (j // 2)
        hob = ((x - 0.08, x + 0.08), (y - 0.08, y + 0.08), (h, h + 0.008))
        p.box(*hob, kit.dark, other, "cyl")


def _sink_top(
    p: Piece, kit: Kit, xs: tuple[float, float], c: float, d: float, h: float, top: int
) -> None:
    """Lay a worktop around a steel basin at x = c, with a tap."""
    r, y0, y1 = 0.21, 0.14, 0.52
    zs = (h - 0.04, h)
    p.box((xs[0], c - r), (0, d + 0.01), zs, top, C["counter"])
    p.box((c + r, xs[1]), (0, d + 0.01), zs, top, C["counter"])
    p.box((c - r, c + r), (0, y0), zs, top, C["counter"])
    p.box((c - r, c + r), (y1, d + 0.01), zs, top, C["counter"])
    sink = C["sink"]
    p.box((c - r, c + r), (y0, y1), (h - 0.19, h - 0.18), kit.metal, sink)
    for a, b in ((c - r, c - r + 0.01), (c + r - 0.01, c + r)):
        p.box((a, b), (y0, y1), (h - 0.19, h + 0.006), kit.metal, sink)
    for a, b in ((y0, y0 + 0.01), (y1 - 0.01, y1)):
        p.box((c - r, c + r), (a, b), (h - 0.19, h + 0.006), kit.metal, sink)
    p.rod((c, 0.08, h), (c, 0.08, h + 0.24), 0.013, kit.metal, sink)
    p.rod((c, 0.08, h + 0.24), (c, 0.26, h + 0.2), 0.011, kit.metal, sink)


def _counter_things(p: Piece, kit: Kit, x: float, h: float) -> None:
    """Stand a kettle, jars, a microwave, a bread board or a bowl of fruit on the worktop."""
    prop, kind = C["otherprop"], kit.uniform(0, 1)
    if kind < 0.22:
        p.box(
            (x - 0.09, x + 0.09),
            (0.15, 0.33),
            (h, h + 0.22),
            kit.metal,
            prop,
            "taper",
            rot_x(3.1416),
        )
        p.rod((x + 0.07, 0.24, h + 0.05), (x + 0.14, 0.24, h + 0.2), 0.012, kit.dark, prop)
    elif kind < 0.44:
        for i in range(3):
            a = x - 0.18 + 0.13 * i
            p.box(
                (a, a + 0.1),
                (0.1, 0.2),
                (h, h + 0.14 + 0.04 * i),
                kit.new_fabric(0.6, 0.8),
                prop,
                "cyl",
            )
    elif kind < 0.6:
        p.box((x - 0.24, x + 0.24), (0.06, 0.42), (h, h + 0.28), kit.metal, prop)
        p.box((x - 0.21, x + 0.1), (0.41, 0.43), (h + 0.04, h + 0.24), kit.dark, prop)
    elif kind < 0.8:
        p.box((x - 0.16, x + 0.16), (0.14, 0.46), (h, h + 0.1), kit.wood2, prop, "bowl")
        for i in range(4):
            a, b = x + 0.07 * ((i % 2) * 2 - 1), 0.3 + 0.07 * ((i // 2) * 2 - 1)
            fruit = kit.paint(hsv(kit.pick(0.0, 0.09, 0.15, 0.28), 0.85, 0.8))
            p.box(
                (a - 0.045, a + 0.045),
                (b - 0.045, b + 0.045),
                (h + 0.05, h + 0.14),
                fruit,
                prop,
                "ball",
            )


def wall_units(kit: Kit, width: float) -> Piece:
    """Build wall cupboards to hang above a worktop."""
    d, h, x = 0.34, 0.7, width / 2
    p = Piece(C["cabinet"], width, d, h)
    p.box((-x, x), (0, d - 0.02), (0, h), kit.front)
    fronts(p, kit, (-x, x), d - 0.02, (0, h), (max(1, round(width / 0.5)), 1), kit.front, False)
    return p


def hood(kit: Kit, width: float) -> Piece:
    """Build an extractor hood."""
    p = Piece(C["otherfurniture"], width, 0.5, 0.75)
    p.box((-width / 2, width / 2), (0, 0.5), (0, 0.07), kit.metal)
    p.box((-0.14, 0.14), (0, 0.28), (0.05, 0.75), kit.metal)
    return p


def fridge(kit: Kit) -> Piece:
    """Build a fridge-freezer with two doors."""
    w, d, h = kit.uniform(0.62, 0.85), 0.68, kit.uniform(1.65, 1.95)
    p = Piece(C["refrigerator"], w, d, h)
    body = kit.white if kit.chance(0.55) else kit.metal
    split, x = h * kit.pick(0.35, 0.62), w / 2
    p.box((-x, x), (0, d - 0.07), (0.04, h), body)
    p.box((-x + 0.03, x - 0.03), (0.03, d - 0.1), (0, 0.05), kit.dark)
    for a, b in ((0.06, split - 0.008), (split + 0.008, h)):
        p.box((-x, x), (d - 0.06, d), (a, b), body)
    for a, b in ((split - 0.35, split - 0.05), (split + 0.05, split + 0.4)):
        p.box((x - 0.07, x - 0.045), (d, d + 0.04), (a, b), kit.metal)
    for _ in range(int(kit.rng.integers(4))):
        a, z = kit.uniform(-x + 0.1, x - 0.15), kit.uniform(split + 0.15, h - 0.25)
        note = kit.paint(hsv(kit.uniform(0, 1), 0.3, 0.95))
        p.box(
            (a, a + 0.1),
            (d, d + 0.003),
            (z, z + 0.13),
            note,
            C["paper"],
            rot=rot_y(kit.uniform(-0.1, 0.1)),
        )
    return p
