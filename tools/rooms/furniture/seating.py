"""Parametric seats and beds."""

from __future__ import annotations

from tools.rooms.classes import CLASS_IDS
from tools.rooms.materials.palette import Kit
from tools.rooms.rendering.mesh import Piece, rot_x, rot_y

CHAIR, SOFA, BED, PILLOW = (CLASS_IDS[n] for n in ("chair", "sofa", "bed", "pillow"))
PROP = CLASS_IDS["otherprop"]


def chair(kit: Kit) -> Piece:
    """Build a dining chair: four legs, a seat, and a back of slats, bars or a panel."""
    w, d, h = kit.uniform(0.42, 0.48), kit.uniform(0.44, 0.5), kit.uniform(0.86, 1.02)
    p = Piece(CHAIR, w, d, h)
    frame = kit.wood if kit.chance(0.7) else kit.dark
    seat = 0.45
    x, t = w / 2 - 0.03, 0.02
    shape = "box" if kit.chance(0.6) else "cyl"
    for sx in (-x, x):
        p.rod((sx * 1.03, d - 0.03, 0), (sx, d - 0.04, seat), t, frame, shape=shape)
        p.rod((sx * 1.03, 0.01, 0), (sx, 0.06, seat), t, frame, shape=shape)
        p.rod((sx, 0.06, seat), (sx, 0.0, h), t, frame, shape=shape)
    cloth = kit.fabric if kit.chance(0.6) else frame
    if cloth == frame:
        p.box((-w / 2, w / 2), (0.03, d), (seat - 0.02, seat + 0.015), frame)
    else:
        p.box((-w / 2, w / 2), (0.03, d), (seat - 0.03, seat + 0.05), cloth, shape="soft")
    style = int(kit.rng.integers(3))
    if style == 0:
        for i in range(3):
            z = seat + (h - seat) * (0.35 + 0.25 * i)
            p.box((-x, x), (0.0, 0.03), (z, z + 0.07), frame)
    elif style == 1:
        p.box((-x, x), (-0.01, 0.025), (h - 0.08, h), frame)
        for i in range(5):
            bx = -x + (i + 1) * x / 3
            p.rod((bx, 0.05, seat), (bx, 0.005, h - 0.05), 0.01, frame)
    else:
        p.box((-w / 2, w / 2), (-0.03, 0.04), (seat + 0.12, h), cloth, shape="soft")
    for sx in (-x, x):
        p.rod((sx, 0.04, 0.2), (sx, d - 0.04, 0.2), 0.012, frame)
    return p


def stool(kit: Kit) -> Piece:
    """Build a bar stool."""
    h = kit.uniform(0.62, 0.75)
    p = Piece(CHAIR, 0.38, 0.38, h)
    leg = kit.pick(kit.metal, kit.wood)
    for sx in (-1, 1):
        for sy in (-1, 1):
            p.rod(
                (0.17 * sx, 0.19 + 0.17 * sy, 0),
                (0.1 * sx, 0.19 + 0.1 * sy, h - 0.05),
                0.014,
                int(leg),
            )
        p.rod((-0.15, 0.19 + 0.15 * sx, 0.22), (0.15, 0.19 + 0.15 * sx, 0.22), 0.01, int(leg))
    p.box((-0.17, 0.17), (0.02, 0.36), (h - 0.06, h), kit.fabric, shape="cyl")
    return p


def office_chair(kit: Kit) -> Piece:
    """Build a swivel chair with a five-star base."""
    import math

    h = kit.uniform(0.95, 1.15)
    p = Piece(CHAIR, 0.6, 0.6, h)
    cloth = kit.fabric if kit.chance(0.5) else kit.dark
    for i in range(5):
        a = 2 * math.pi * i / 5 + 0.3
        x, y = 0.27 * math.cos(a), 0.3 + 0.27 * math.sin(a)
        p.rod((0, 0.3, 0.1), (x, y, 0.07), 0.02, kit.dark)
        p.box((x - 0.025, x + 0.025), (y - 0.025, y + 0.025), (0, 0.05), kit.dark, shape="ball")
    p.rod((0, 0.3, 0.08), (0, 0.3, 0.42), 0.028, kit.metal)
    p.box((-0.25, 0.25), (0.07, 0.56), (0.41, 0.52), cloth, shape="soft")
    p.box((-0.23, 0.23), (0.02, 0.1), (0.58, h), cloth, shape="soft", rot=rot_x(0.12))
    p.rod((0, 0.2, 0.44), (0, 0.04, 0.7), 0.02, kit.dark)
    for sx in (-0.28, 0.28):
        p.rod((sx, 0.25, 0.45), (sx, 0.25, 0.66), 0.016, kit.dark)
        p.box((sx - 0.03, sx + 0.03), (0.14, 0.42), (0.65, 0.69), kit.dark, shape="soft")
    return p


def cushion(kit: Kit, size: float, mat: int) -> Piece:
    """Build a scatter cushion that leans back against y = 0."""
    p = Piece(PILLOW, size, 0.2, size)
    p.box((-size / 2, size / 2), (0.02, 0.17), (0, size), mat, shape="cushion", rot=rot_x(0.3))
    return p


def sofa(kit: Kit, seats: int = 3) -> Piece:
    """Build a sofa (or, with one seat, an armchair of class chair) with cushions."""
    seat_w, arm = kit.uniform(0.58, 0.68), kit.uniform(0.14, 0.22)
    w, d, h = seats * seat_w + 2 * arm, kit.uniform(0.85, 0.95), kit.uniform(0.78, 0.9)
    p = Piece(CHAIR if seats == 1 else SOFA, w, d, h)
    cloth, leg = kit.fabric, kit.wood
    x = w / 2
    for sx in (-x + 0.08, x - 0.08):
        for sy in (0.08, d - 0.08):
            p.box((sx - 0.03, sx + 0.03), (sy - 0.03, sy + 0.03), (0, 0.12), leg)
    p.box((-x + 0.04, x - 0.04), (0.04, d - 0.06), (0.1, 0.3), cloth)
    p.box((-x + arm / 2, x - arm / 2), (0, 0.24), (0.12, h), cloth, shape="soft")
    arm_h = kit.uniform(0.56, 0.66)
    for sx in (-x + arm / 2, x - arm / 2):
        p.box((sx - arm / 2, sx + arm / 2), (0.0, d), (0.1, arm_h), cloth, shape="soft")
    for i in range(seats):
        a = -x + arm + i * seat_w
        p.box((a + 0.004, a + seat_w - 0.004), (0.18, d + 0.01), (0.27, 0.46), cloth, shape="soft")
        p.box((a + 0.01, a + seat_w - 0.01), (0.16, 0.38), (0.42, h + 0.04), cloth, shape="cushion")
    mat = kit.new_fabric(0.7, 0.8)
    spots = [s for s in (-1, 1) if kit.chance(0.75)]
    for s in spots:
        px = s * (x - arm - 0.24) if seats > 1 else 0.0
        p.put(cushion(kit, kit.uniform(0.36, 0.44), mat), px, 0.34, 0.44, s * 0.25)
    if seats > 1 and kit.chance(0.3):
        # A blanket over one arm.
        p.box(
            (x - arm - 0.01, x + 0.01), (0.3, 0.62), (arm_h - 0.3, arm_h + 0.015), mat, shape="soft"
        )
    return p


def bed(kit: Kit, double: bool = True) -> Piece:
    """Build a bed with head board, mattress, blanket and pillows; its head is at y = 0."""
    w = kit.uniform(1.5, 1.8) if double else kit.uniform(0.95, 1.1)
    d, top = 2.08, kit.uniform(0.42, 0.52)
    head = kit.uniform(0.85, 1.2)
    p = Piece(BED, w, d, head)
    x = w / 2
    if kit.chance(0.5):
        p.box((-x - 0.03, x + 0.03), (0, 0.06), (0.1, head), kit.wood)
    else:
        cloth = kit.fabric
        n = 3 if double else 2
        for i in range(n):
            a = -x + i * w / n
            p.box((a, a + w / n), (0, 0.12), (0.1, head), cloth, shape="soft")
    p.box((-x, x), (0.05, d), (0.1, 0.28), kit.wood)
    for sx in (-x + 0.06, x - 0.06):
        for sy in (0.1, d - 0.06):
            p.box((sx - 0.035, sx + 0.035), (sy - 0.035, sy + 0.035), (0, 0.12), kit.wood)
    p.box((-x + 0.02, x - 0.02), (0.07, d - 0.02), (0.24, top), kit.linen, shape="soft")
    quilt = kit.new_fabric(0.5, 0.75)
    start = kit.uniform(0.55, 0.8)
    p.box((-x - 0.02, x + 0.02), (start, d + 0.02), (0.2, top + 0.05), quilt, shape="soft")
    fold = kit.linen if kit.chance(0.6) else kit.new_fabric(0.3, 0.85)
    p.box(
        (-x - 0.025, x + 0.025),
        (start - 0.02, start + 0.26),
        (0.24, top + 0.065),
        fold,
        shape="soft",
    )
    if kit.chance(0.5):
        p.box(
            (-x - 0.03, x + 0.03), (d - 0.65, d - 0.2), (0.22, top + 0.07), kit.fabric, shape="soft"
        )
    _bedding(p, kit, 2 if double else 1, top, quilt)
    return p


def _bedding(p: Piece, kit: Kit, n: int, top: float, quilt: int) -> None:
    """Lay n pillows, perhaps cushions and a soft toy on a bed whose mattress ends at `top`."""
    for i in range(n):
        c = 0.0 if n == 1 else (i - 0.5) * p.width * 0.5
        turn = rot_x(0.5)
        p.box(
            (c - 0.33, c + 0.33),
            (0.14, 0.52),
            (top - 0.01, top + 0.17),
            kit.linen,
            PILLOW,
            "cushion",
            turn,
        )
        if kit.chance(0.6):
            small = cushion(kit, 0.4, quilt if kit.chance(0.5) else kit.fabric)
            p.put(small, c + kit.uniform(-0.08, 0.08), 0.42, top, kit.uniform(-0.2, 0.2))
    if kit.chance(0.35):
        p.box(
            (-0.12, 0.12),
            (1.2, 1.4),
            (top + 0.03, top + 0.2),
            kit.new_fabric(0.6, 0.7),
            PROP,
            "ball",
        )
        p.box((-0.07, 0.07), (1.24, 1.36), (top + 0.17, top + 0.31), kit.fabric, PROP, "ball")


def bench(kit: Kit) -> Piece:
    """Build an upholstered bench."""
    w = kit.uniform(0.9, 1.3)
    p = Piece(CHAIR, w, 0.4, 0.46)
    for sx in (-1, 1):
        for sy in (0.05, 0.35):
            p.rod((sx * (w / 2 - 0.03), sy, 0), (sx * (w / 2 - 0.07), sy, 0.38), 0.02, kit.wood)
    p.box((-w / 2, w / 2), (0, 0.4), (0.36, 0.47), kit.fabric, shape="soft")
    return p


def ottoman(kit: Kit) -> Piece:
    """Build a round pouf."""
    r = kit.uniform(0.24, 0.34)
    p = Piece(CHAIR, 2 * r, 2 * r, 0.4)
    p.box((-r, r), (0, 2 * r), (0, 0.4), kit.new_fabric(0.6, 0.7), shape="soft", rot=rot_y(0))
    return p
