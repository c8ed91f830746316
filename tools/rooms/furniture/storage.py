"""Parametric cupboards and shelves."""

from __future__ import annotations

from tools.rooms.classes import CLASS_IDS as C
from tools.rooms.materials.palette import Kit, hsv
from tools.rooms.rendering.mesh import Piece


def _handle(p: Piece, kit: Kit, x: float, y: float, z: float, upright: bool) -> None:
    """Add a bar handle in front of a door or drawer."""
    if upright:
        p.box((x - 0.008, x + 0.008), (y, y + 0.025), (z - 0.07, z + 0.07), kit.metal)
    else:
        p.box((x - 0.07, x + 0.07), (y, y + 0.025), (z - 0.008, z + 0.008), kit.metal)


def fronts(
    p: Piece,
    kit: Kit,
    xs: tuple[float, float],
    y: float,
    zs: tuple[float, float],
    grid: tuple[int, int],
    mat: int,
    drawers: bool,
) -> None:
    """Cover a carcass with a grid of doors or drawers, leaving shadow gaps."""
    cols, rows = grid
    dx, dz = (xs[1] - xs[0]) / cols, (zs[1] - zs[0]) / rows
    for i in range(cols):
        for j in range(rows):
            a, b = xs[0] + i * dx + 0.006, xs[0] + (i + 1) * dx - 0.006
            c, e = zs[0] + j * dz + 0.006, zs[0] + (j + 1) * dz - 0.006
            p.box((a, b), (y, y + 0.02), (c, e), mat)
            if drawers:
                _handle(p, kit, (a + b) / 2, y + 0.02, e - 0.05, False)
            else:
                _handle(p, kit, b - 0.04 if i % 2 == 0 else a + 0.04, y + 0.02, (c + e) / 2, True)


def book_row(p: Piece, kit: Kit, x0: float, x1: float, y: float, z: float, room: float) -> None:
    """Fill a shelf board with books of different height, colour and lean."""
    mats = [
        kit.paint(hsv(kit.uniform(0, 1), kit.uniform(0.2, 0.75), kit.uniform(0.25, 0.9)))
        for _ in range(5)
    ]
    mats.append(kit.pages)
    x = x0 + kit.uniform(0, 0.03)
    stop = x1 - kit.uniform(0.0, 0.25 * (x1 - x0))
    while True:
        t, h = kit.uniform(0.018, 0.05), room * kit.uniform(0.62, 0.93)
        if x + t > stop:
            break
        mat = mats[int(kit.rng.integers(len(mats)))]
        p.box((x, x + t - 0.002), (y, y + kit.uniform(0.14, 0.19)), (z, z + h), mat, C["books"])
        x += t
    if x1 - x > 0.14:
        x += 0.04
        n = int(kit.rng.integers(1, 4))
        w = min(0.2, x1 - x - 0.01)
        for i in range(n):
            mat = mats[int(kit.rng.integers(len(mats)))]
            p.box((x, x + w), (y, y + 0.15), (z + 0.03 * i, z + 0.03 * i + 0.028), mat, C["books"])


def bookshelf(kit: Kit, width: float | None = None) -> Piece:
    """Build an open bookcase full of books, boxes and small objects."""
    w = kit.uniform(0.75, 1.2) if width is None else width
    d, h = 0.3, kit.uniform(1.6, 2.15)
    p = Piece(C["bookshelf"], w, d, h)
    mat, x, t = kit.pick(kit.wood, kit.wood, kit.white), w / 2, 0.025
    m = int(mat)
    p.box((-x, x), (0, 0.012), (0, h), m)
    for sx in (-x, x - t):
        p.box((sx, sx + t), (0, d), (0, h), m)
    n = int(kit.rng.integers(4, 7))
    gap = (h - t - 0.06) / n
    for i in range(n + 1):
        z = 0.06 + i * gap
        p.box((-x + t, x - t), (0.01, d - 0.005), (z, z + t), m)
        if i == n:
            break
        kind = kit.uniform(0, 1)
        inner = gap - t
        if kind < 0.72:
            book_row(p, kit, -x + t, x - t, 0.06, z + t, inner)
        elif kind < 0.87:
            box_mat = kit.cardboard if kit.chance(0.5) else kit.new_fabric()
            for s in (-0.25, 0.25):
                e = min(0.15, w * 0.2)
                p.box(
                    (s * w - e, s * w + e),
                    (0.05, 0.27),
                    (z + t, z + t + inner * 0.7),
                    box_mat,
                    C["box"],
                )
        else:
            v = inner * 0.8
            p.box(
                (-0.08, 0.08),
                (0.08, 0.24),
                (z + t, z + t + v),
                kit.new_fabric(0.7),
                C["otherprop"],
                "vase",
            )
    return p


def wall_shelf(kit: Kit) -> Piece:
    """Build two boards on the wall with a few things on them."""
    w = kit.uniform(0.7, 1.3)
    p = Piece(C["shelves"], w, 0.24, 0.62)
    for i in range(2):
        z = 0.36 * i
        p.box((-w / 2, w / 2), (0, 0.24), (z, z + 0.03), kit.wood)
        book_row(p, kit, -w / 2 + 0.02, w * kit.uniform(0.0, 0.25), 0.02, z + 0.03, 0.28)
        p.box(
            (w / 2 - 0.2, w / 2 - 0.05),
            (0.05, 0.2),
            (z + 0.03, z + 0.2),
            kit.new_fabric(0.7),
            C["otherprop"],
            "vase",
        )
    return p


def cupboard(kit: Kit, kind: str) -> Piece:
    """Build a carcass with fronts: "cabinet", "wardrobe", "dresser", "night" or "tv"."""
    sizes = {
        "cabinet": (kit.uniform(0.8, 1.4), 0.42, kit.uniform(0.8, 1.1)),
        "wardrobe": (kit.uniform(1.2, 1.9), 0.6, kit.uniform(1.95, 2.2)),
        "dresser": (kit.uniform(0.9, 1.3), 0.48, kit.uniform(0.75, 1.0)),
        "night": (kit.uniform(0.42, 0.52), 0.4, kit.uniform(0.45, 0.58)),
        "tv": (kit.uniform(1.3, 1.9), 0.42, kit.uniform(0.4, 0.55)),
    }
    cls = {"dresser": "dresser", "night": "night stand"}.get(kind, "cabinet")
    w, d, h = sizes[kind]
    p = Piece(C[cls], w, d, h)
    x = w / 2
    foot = 0.04 if kind == "wardrobe" else kit.uniform(0.06, 0.14)
    for sx in (-x + 0.05, x - 0.05):
        for sy in (0.05, d - 0.07):
            p.box((sx - 0.025, sx + 0.025), (sy - 0.025, sy + 0.025), (0, foot), kit.wood)
    body = kit.wood if kit.chance(0.7) else kit.white
    p.box((-x, x), (0, d - 0.025), (foot, h - 0.03), body)
    p.box((-x - 0.01, x + 0.01), (0, d + 0.005), (h - 0.03, h), body)
    grid = {
        "cabinet": (int(kit.rng.integers(2, 4)), 1),
        "wardrobe": (int(kit.rng.integers(2, 5)), 1),
        "dresser": (2, int(kit.rng.integers(3, 5))),
        "night": (1, 2),
        "tv": (int(kit.rng.integers(2, 5)), 1),
    }[kind]
    fronts(
        p, kit, (-x, x), d - 0.025, (foot, h - 0.03), grid, kit.front, kind in ("dresser", "night")
    )
    return p
