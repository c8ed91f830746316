"""Parametric tables and desks, and what stands on them."""

from __future__ import annotations

from tools.rooms.classes import CLASS_IDS as C
from tools.rooms.materials.palette import Kit, hsv
from tools.rooms.rendering.mesh import Piece, rot_x, rot_z


def _frame(p: Piece, kit: Kit, mat: int, thick: float) -> None:
    """Add a top, an apron and four legs."""
    x, d, h = p.width / 2, p.depth, p.height
    p.box((-x, x), (0, d), (h - thick, h), mat)
    p.box((-x + 0.06, x - 0.06), (0.06, 0.08), (h - thick - 0.07, h - thick), mat)
    p.box((-x + 0.06, x - 0.06), (d - 0.08, d - 0.06), (h - thick - 0.07, h - thick), mat)
    leg = mat if kit.chance(0.7) else kit.dark
    splay = kit.pick(0.0, 0.04)
    for sx in (-1, 1):
        for sy in (0.07, d - 0.07):
            out = splay if sy > d / 2 else -splay
            start = (sx * (x - 0.07 + splay), sy + out, 0.0)
            p.rod(start, (sx * (x - 0.07), sy, h - thick), 0.028, leg, shape="box")


def table(kit: Kit, width: float, depth: float, height: float = 0.75) -> Piece:
    """Build a table, rectangular or (when square) at times round on a pillar."""
    p = Piece(C["table"], width, depth, height)
    if abs(width - depth) < 0.05 and kit.chance(0.6):
        r = width / 2
        p.box((-r, r), (0, depth), (height - 0.03, height), kit.wood, shape="disc")
        p.rod((0, r, 0.03), (0, r, height - 0.03), 0.05, kit.wood)
        p.box((-0.25, 0.25), (r - 0.25, r + 0.25), (0, 0.04), kit.wood, shape="cyl")
    else:
        _frame(p, kit, kit.wood, kit.uniform(0.03, 0.05))
    return p


def set_table(p: Piece, kit: Kit, seats: list[tuple[float, float]]) -> None:
    """Lay plates and glasses at the seats (x, y) of a table, and a centre piece."""
    z, prop = p.height, C["otherprop"]
    cy = p.depth / 2
    if kit.chance(0.4):
        runner = kit.new_fabric(0.5, 0.8)
        p.box(
            (-p.width / 2 + 0.1, p.width / 2 - 0.1),
            (cy - 0.17, cy + 0.17),
            (z, z + 0.004),
            runner,
            prop,
        )
    for x, y in seats:
        p.box(
            (x - 0.12, x + 0.12), (y - 0.12, y + 0.12), (z, z + 0.025), kit.porcelain, prop, "bowl"
        )
        p.box((x + 0.14, x + 0.2), (y - 0.03, y + 0.03), (z, z + 0.12), kit.metal, prop, "taper")
    p.put(vase(kit) if kit.chance(0.6) else fruit_bowl(kit), 0.0, cy - 0.1, z)


def vase(kit: Kit) -> Piece:
    """Build a vase with flowers."""
    p = Piece(C["otherprop"], 0.2, 0.2, 0.45)
    p.box((-0.07, 0.07), (0.03, 0.17), (0, 0.2), kit.new_fabric(0.6, 0.8), shape="vase")
    bloom = kit.paint(hsv(kit.uniform(-0.15, 0.17), 0.7, 0.95))
    for _ in range(6):
        x, y, z = kit.uniform(-0.1, 0.1), 0.1 + kit.uniform(-0.1, 0.1), kit.uniform(0.3, 0.42)
        p.rod((0, 0.1, 0.18), (x, y, z), 0.005, kit.green)
        p.box((x - 0.03, x + 0.03), (y - 0.03, y + 0.03), (z - 0.02, z + 0.03), bloom, shape="ball")
    return p


def fruit_bowl(kit: Kit) -> Piece:
    """Build a bowl of fruit."""
    p = Piece(C["otherprop"], 0.3, 0.3, 0.14)
    p.box((-0.15, 0.15), (-0.05, 0.25), (0, 0.1), kit.wood2, shape="bowl")
    fruit = kit.paint(hsv(kit.pick(0.0, 0.08, 0.14, 0.27), 0.85, 0.85))
    for i in range(5):
        x, y = 0.06 * ((i % 2) * 2 - 1), 0.1 + 0.06 * ((i // 2) - 0.7)
        p.box((x - 0.045, x + 0.045), (y - 0.045, y + 0.045), (0.05, 0.14), fruit, shape="ball")
    return p


def monitor(kit: Kit) -> Piece:
    """Build a computer screen with keyboard and mouse; the screen faces +y."""
    w = kit.uniform(0.5, 0.66)
    p = Piece(C["otherprop"], w, 0.5, 0.5)
    dark, tv = kit.dark, C["television"]
    p.box((-w / 2, w / 2), (0.08, 0.11), (0.12, 0.12 + w * 0.6), dark, tv)
    face = (0.12 + 0.012, 0.12 + w * 0.6 - 0.012)
    p.box((-w / 2 + 0.012, w / 2 - 0.012), (0.109, 0.112), face, kit.screen(False), tv, "panel")
    p.box((-0.02, 0.02), (0.06, 0.09), (0, 0.2), dark, tv)
    p.box((-0.12, 0.12), (0, 0.18), (0, 0.012), dark, tv)
    keys = kit.pick(kit.dark, kit.white)
    p.box((-0.21, 0.21), (0.28, 0.42), (0, 0.02), int(keys))
    p.box((0.26, 0.32), (0.3, 0.4), (0, 0.03), int(keys), shape="cushion")
    return p


def desk(kit: Kit) -> Piece:
    """Build a desk with drawers, a screen, papers, books, a mug and a lamp."""
    w, d, h = kit.uniform(1.2, 1.7), kit.uniform(0.62, 0.78), 0.74
    p = Piece(C["desk"], w, d, h)
    x = w / 2
    top = kit.wood if kit.chance(0.7) else kit.white
    p.box((-x, x), (0, d), (h - 0.035, h), top)
    side = kit.pick(-1.0, 1.0)
    a = side * (x - 0.22)
    p.box((a - 0.2, a + 0.2), (0.05, d - 0.05), (0.04, h - 0.035), top)
    for i in range(3):
        z = 0.07 + i * 0.21
        p.box((a - 0.19, a + 0.19), (d - 0.05, d - 0.03), (z, z + 0.2), kit.front)
        p.box((a - 0.06, a + 0.06), (d - 0.03, d - 0.01), (z + 0.14, z + 0.155), kit.metal)
    for sy in (0.05, d - 0.05):
        p.rod(
            (-side * (x - 0.05), sy, 0),
            (-side * (x - 0.05), sy, h - 0.03),
            0.025,
            kit.dark,
            shape="box",
        )
    p.put(monitor(kit), -side * 0.12, 0.06, h)
    clutter(p, kit, side * (x - 0.2), 0.12, h)
    if kit.chance(0.7):
        sheet = (-side * 0.45 - 0.1, -side * 0.45 + 0.1)
        p.box(
            sheet,
            (d - 0.36, d - 0.07),
            (h, h + 0.006),
            kit.pages,
            C["paper"],
            rot=rot_z(kit.uniform(-0.4, 0.4)),
        )
    if kit.chance(0.7):
        p.put(desk_lamp(kit), -side * (x - 0.16), 0.14, h)
    mug_x = side * 0.38
    p.box(
        (mug_x - 0.04, mug_x + 0.04),
        (0.42, 0.5),
        (h, h + 0.1),
        kit.new_fabric(0.7, 0.8),
        C["otherprop"],
        "cyl",
    )
    return p


def desk_lamp(kit: Kit) -> Piece:
    """Build a jointed desk lamp."""
    p = Piece(C["lamp"], 0.2, 0.3, 0.5)
    mat = kit.pick(kit.dark, kit.metal, kit.brass)
    m = int(mat)
    p.box((-0.08, 0.08), (-0.08, 0.08), (0, 0.02), m, shape="cyl")
    p.rod((0, 0, 0.02), (0.0, -0.06, 0.28), 0.009, m)
    p.rod((0, -0.06, 0.28), (0, 0.14, 0.44), 0.009, m)
    p.box((-0.07, 0.07), (0.08, 0.22), (0.36, 0.47), m, shape="shade", rot=rot_x(0.3))
    p.box((-0.035, 0.035), (0.12, 0.19), (0.36, 0.41), kit.glow, shape="ball")
    p.glow.append((0.0, 0.18, 0.3))
    return p


def clutter(p: Piece, kit: Kit, x: float, y: float, z: float) -> None:
    """Put a stack of books, a plant pot, a box or nothing on a piece at (x, y, z)."""
    kind = kit.uniform(0, 1)
    if kind < 0.45:
        for i in range(int(kit.rng.integers(2, 6))):
            mat = kit.paint(hsv(kit.uniform(0, 1), kit.uniform(0.2, 0.7), kit.uniform(0.3, 0.9)))
            turn = rot_z(kit.uniform(-0.25, 0.25))
            p.box(
                (x - 0.1, x + 0.1),
                (y, y + 0.15),
                (z + 0.03 * i, z + 0.03 * i + 0.029),
                mat,
                C["books"],
                rot=turn,
            )
    elif kind < 0.7:
        p.box(
            (x - 0.06, x + 0.06),
            (y, y + 0.12),
            (z, z + 0.11),
            kit.new_fabric(0.6, 0.8),
            C["otherprop"],
            "taper",
        )
        for i in range(9):
            turn = rot_z(i * 0.7) @ rot_x(-0.35 - 0.05 * (i % 3))
            p.box(
                (x - 0.025, x + 0.025),
                (y + 0.04, y + 0.08),
                (z + 0.1, z + 0.3),
                kit.green,
                C["otherprop"],
                "leaf",
                turn,
            )
    elif kind < 0.85:
        p.box(
            (x - 0.11, x + 0.11), (y, y + 0.17), (z, z + 0.13), kit.new_fabric(0.5, 0.8), C["box"]
        )
