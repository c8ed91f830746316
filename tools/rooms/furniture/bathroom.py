"""Parametric bathroom fittings."""

from __future__ import annotations

from tools.rooms.classes import CLASS_IDS as C
from tools.rooms.materials import patterns as tx
from tools.rooms.materials.palette import Kit
from tools.rooms.rendering.mesh import Piece, rot_x


def toilet(kit: Kit) -> Piece:
    """Build a toilet with cistern, seat and raised lid."""
    p = Piece(C["toilet"], 0.42, 0.7, 0.82)
    m = kit.porcelain
    p.box((-0.2, 0.2), (0.0, 0.19), (0.4, 0.8), m, shape="soft")
    p.box((-0.21, 0.21), (0.0, 0.2), (0.77, 0.82), m, shape="soft")
    p.box((-0.12, 0.12), (0.1, 0.5), (0, 0.3), m, shape="soft")
    p.box((-0.19, 0.19), (0.16, 0.68), (0.1, 0.41), m, shape="bowl")
    p.box((-0.2, 0.2), (0.16, 0.7), (0.39, 0.425), m, shape="cyl")
    if kit.chance(0.5):
        p.box((-0.19, 0.19), (0.19, 0.23), (0.42, 0.82), m, shape="soft", rot=rot_x(0.12))
    else:
        p.box((-0.205, 0.205), (0.16, 0.705), (0.425, 0.45), m, shape="soft")
    p.box((-0.02, 0.02), (0.08, 0.12), (0.81, 0.835), kit.metal, shape="cyl")
    return p


def vanity(kit: Kit) -> Piece:
    """Build a wash basin: on a cupboard or on a pedestal."""
    w = kit.uniform(0.6, 1.1)
    p = Piece(C["sink"], w, 0.5, 0.86)
    x = w / 2
    if kit.chance(0.7):
        p.box((-x, x), (0, 0.44), (0.12, 0.74), kit.front, C["cabinet"])
        n = 2 if w > 0.75 else 1
        for i in range(n):
            a = -x + i * w / n
            p.box(
                (a + 0.006, a + w / n - 0.006), (0.44, 0.46), (0.14, 0.72), kit.front, C["cabinet"]
            )
            p.box(
                (a + w / n / 2 - 0.06, a + w / n / 2 + 0.06),
                (0.46, 0.48),
                (0.66, 0.675),
                kit.metal,
                C["cabinet"],
            )
        p.box((-x - 0.01, x + 0.01), (0, 0.49), (0.74, 0.78), kit.stone, C["counter"])
    else:
        p.rod((0, 0.2, 0), (0, 0.2, 0.72), 0.09, kit.porcelain)
        p.box((-0.26, 0.26), (0.0, 0.2), (0.66, 0.84), kit.porcelain, shape="soft")
    p.box((-0.24, 0.24), (0.06, 0.46), (0.72, 0.87), kit.porcelain, shape="bowl")
    p.rod((0, 0.05, 0.78), (0, 0.05, 1.0), 0.012, kit.metal)
    p.rod((0, 0.05, 1.0), (0, 0.17, 0.97), 0.01, kit.metal)
    if kit.chance(0.7):
        p.box(
            (x - 0.11, x - 0.05),
            (0.1, 0.16),
            (0.78, 0.93),
            kit.new_fabric(0.6, 0.8),
            C["otherprop"],
            "cyl",
        )
    return p


def bathtub(kit: Kit) -> Piece:
    """Build a bath tub with rim, hollow, apron and taps."""
    w, d, h = kit.uniform(1.5, 1.75), 0.75, 0.58
    p = Piece(C["bathtub"], w, d, h)
    x, m = w / 2, kit.porcelain
    p.box((-x, x), (0, d), (0, 0.1), m)
    for ys in ((0.0, 0.08), (d - 0.08, d)):
        p.box((-x, x), ys, (0, h), m)
    for xs in ((-x, -x + 0.12), (x - 0.12, x)):
        p.box(xs, (0, d), (0, h), m)
    for ys in ((-0.005, 0.09), (d - 0.09, d + 0.01)):
        p.box((-x, x), ys, (h - 0.04, h + 0.015), m, shape="soft")
    for sx in (-x + 0.12, x - 0.12):
        tilt = (sx - 0.1, sx + 0.1)
        p.box(tilt, (0.06, d - 0.06), (0.06, h - 0.02), m, shape="soft")
    blue = kit.color(0.1, 0.9) * 0.5 + 0.4
    water = kit.mats.add(tx.BLOTCH, blue, blue, None, (0.3, 0.6), 0.1)
    if kit.chance(0.4):
        p.box((-x + 0.1, x - 0.1), (0.06, d - 0.06), (0.3, 0.4), water)
    p.rod((x - 0.2, 0.04, h), (x - 0.2, 0.04, h + 0.16), 0.014, kit.metal)
    p.rod((x - 0.2, 0.04, h + 0.16), (x - 0.2, 0.2, h + 0.12), 0.014, kit.metal)
    return p


def shower_curtain(kit: Kit, length: float) -> Piece:
    """Build a rail with a drawn-back shower curtain."""
    p = Piece(C["shower curtain"], length, 0.2, 2.0)
    p.rod((-length / 2, 0.1, 1.98), (length / 2, 0.1, 1.98), 0.012, kit.metal)
    share = length * kit.uniform(0.35, 0.6)
    cloth = kit.new_fabric(0.4, 0.9)
    p.box((-length / 2, -length / 2 + share), (0.03, 0.17), (0.25, 1.97), cloth, shape="cloth")
    return p


def mirror(kit: Kit, w: float, h: float) -> Piece:
    """Build a framed wall mirror."""
    p = Piece(C["mirror"], w, 0.03, h)
    f = kit.wood if kit.chance(0.5) else kit.metal
    p.box((-w / 2, w / 2), (0, 0.02), (0, h), f)
    p.box((-w / 2 + 0.03, w / 2 - 0.03), (0.019, 0.024), (0.03, h - 0.03), kit.mirror)
    return p


def towel_rail(kit: Kit) -> Piece:
    """Build a rail with one or two towels."""
    p = Piece(C["towel"], 0.7, 0.1, 0.7)
    p.rod((-0.35, 0.07, 0.66), (0.35, 0.07, 0.66), 0.01, kit.metal, C["otherprop"])
    for s in (-0.17, 0.17):
        if s < 0 or kit.chance(0.7):
            low = kit.uniform(0.0, 0.25)
            p.box(
                (s - 0.14, s + 0.14),
                (0.045, 0.095),
                (low, 0.675),
                kit.new_fabric(0.6, 0.8),
                shape="soft",
            )
    return p


def paper_roll(kit: Kit) -> Piece:
    """Build a toilet roll on its holder."""
    p = Piece(C["paper"], 0.14, 0.12, 0.12)
    p.rod((-0.055, 0.07, 0.06), (0.055, 0.07, 0.06), 0.055, kit.pages)
    p.rod((-0.07, 0.07, 0.06), (0.07, 0.07, 0.06), 0.008, kit.metal, C["otherprop"])
    return p


def basket(kit: Kit) -> Piece:
    """Build a laundry basket with clothes on top."""
    p = Piece(C["otherprop"], 0.42, 0.42, 0.62)
    p.box((-0.2, 0.2), (0.01, 0.41), (0, 0.55), kit.wood2, shape="taper")
    for _ in range(3):
        x, y = kit.uniform(-0.07, 0.07), 0.21 + kit.uniform(-0.07, 0.07)
        p.box(
            (x - 0.13, x + 0.13),
            (y - 0.12, y + 0.12),
            (0.48, 0.64),
            kit.new_fabric(0.6, 0.75),
            C["clothes"],
            "cushion",
        )
    return p
