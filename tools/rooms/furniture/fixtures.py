"""Parametric screens, boards, lamps, plants, rugs, clothes and hangings."""

from __future__ import annotations

from tools.rooms.classes import CLASS_IDS as C
from tools.rooms.materials.palette import Kit
from tools.rooms.rendering.mesh import Piece, rot_x, rot_z


def coat_rack(kit: Kit) -> Piece:
    """Build a peg rail with clothes and a bag."""
    p = Piece(C["otherfurniture"], 1.0, 0.25, 1.0)
    p.box((-0.5, 0.5), (0, 0.03), (0.88, 0.98), kit.wood)
    for i in range(4):
        x = -0.38 + 0.25 * i
        p.rod((x, 0.03, 0.92), (x, 0.1, 0.94), 0.012, kit.metal)
        if i == 3:
            p.box(
                (x - 0.14, x + 0.14),
                (0.03, 0.16),
                (0.25, 0.6),
                kit.new_fabric(0.7, 0.5),
                C["bag"],
                "soft",
            )
            p.rod((x - 0.1, 0.09, 0.55), (x, 0.09, 0.93), 0.01, kit.dark, C["bag"])
            p.rod((x + 0.1, 0.09, 0.55), (x, 0.09, 0.93), 0.01, kit.dark, C["bag"])
        elif kit.chance(0.75):
            low = kit.uniform(-0.1, 0.25)
            cloth = kit.new_fabric(0.6, 0.6)
            p.box((x - 0.17, x + 0.17), (0.03, 0.18), (low, 0.93), cloth, C["clothes"], "soft")
            p.box(
                (x - 0.22, x - 0.1),
                (0.05, 0.16),
                (low + 0.25, 0.85),
                cloth,
                C["clothes"],
                "soft",
                rot_z(0.1),
            )
    return p


def bag(kit: Kit) -> Piece:
    """Build a back pack standing on the floor."""
    p = Piece(C["bag"], 0.34, 0.24, 0.46)
    cloth = kit.new_fabric(0.8, 0.6)
    p.box((-0.16, 0.16), (0.03, 0.2), (0, 0.45), cloth, shape="soft")
    p.box((-0.12, 0.12), (0.16, 0.25), (0.05, 0.25), cloth, shape="soft")
    return p


def boxes(kit: Kit) -> Piece:
    """Build a stack of packing boxes."""
    w = kit.uniform(0.35, 0.5)
    p = Piece(C["box"], w, w, 0.7)
    z = 0.0
    for i in range(int(kit.rng.integers(1, 4))):
        h, s = kit.uniform(0.2, 0.34), w / 2 * (1 - 0.12 * i)
        turn = rot_z(kit.uniform(-0.2, 0.2))
        p.box((-s, s), (w / 2 - s, w / 2 + s), (z, z + h), kit.cardboard, rot=turn)
        p.box(
            (-s * 1.003, s * 1.003),
            (w / 2 - 0.03, w / 2 + 0.03),
            (z + 0.002, z + h + 0.002),
            kit.pages,
            rot=turn,
        )
        z += h
    p.height = z
    return p


def plant(kit: Kit) -> Piece:
    """Build a potted plant with bent leaves."""
    size = kit.uniform(0.7, 1.5)
    p = Piece(C["otherprop"], 0.5, 0.5, size)
    r = kit.uniform(0.13, 0.19)
    p.box((-r, r), (0.25 - r, 0.25 + r), (0, 0.3), kit.new_fabric(0.5, 0.75), shape="taper")
    p.box(
        (-r * 0.9, r * 0.9), (0.25 - r * 0.9, 0.25 + r * 0.9), (0.28, 0.295), kit.dark, shape="cyl"
    )
    upright = kit.chance(0.4)
    trunk = 0.28 if upright else 0.3 + 0.3 * (size - 0.5)
    if not upright:
        p.rod((0, 0.25, 0.28), (0, 0.25, trunk + 0.15), 0.018, kit.wood2)
    for i in range(int(kit.rng.integers(22, 40))):
        length = (size - trunk) * kit.uniform(0.55, 1.05)
        lean = kit.uniform(0.05, 0.35) if upright else kit.uniform(0.3, 1.5)
        turn = rot_z(i * 2.4) @ rot_x(-lean)
        half = 0.5 * length
        c = turn @ (0, 0.15 * half, half)
        z = trunk - 0.03 if upright else kit.uniform(trunk - 0.1, trunk + 0.15)
        wide = kit.uniform(0.035, 0.05) if upright else kit.uniform(0.05, 0.085)
        x, y, zc = float(c[0]), 0.25 + float(c[1]), z + float(c[2])
        bow = 0.12 * length
        p.box(
            (x - wide, x + wide),
            (y - bow, y + bow),
            (zc - half, zc + half),
            kit.green,
            shape="leaf",
            rot=turn,
        )
    return p


def floor_lamp(kit: Kit) -> Piece:
    """Build a standing lamp with a lit shade."""
    h = kit.uniform(1.45, 1.75)
    p = Piece(C["lamp"], 0.4, 0.4, h)
    m = kit.dark if kit.chance(0.5) else kit.brass
    p.box((-0.14, 0.14), (0.06, 0.34), (0, 0.025), m, shape="cyl")
    p.rod((0, 0.2, 0.02), (0, 0.2, h - 0.1), 0.012, m)
    p.box((-0.2, 0.2), (0.0, 0.4), (h - 0.32, h), kit.glow, shape="shade")
    p.glow.append((0.0, 0.2, h - 0.35))
    return p


def table_lamp(kit: Kit) -> Piece:
    """Build a table lamp with a lit shade."""
    p = Piece(C["lamp"], 0.28, 0.28, 0.48)
    p.box((-0.07, 0.07), (0.07, 0.21), (0, 0.26), kit.new_fabric(0.5, 0.8), shape="vase")
    p.box((-0.14, 0.14), (0.0, 0.28), (0.24, 0.46), kit.glow, shape="shade")
    p.glow.append((0.0, 0.14, 0.3))
    return p


def ceiling_lamp(kit: Kit, drop: float) -> Piece:
    """Build a lamp that hangs `drop` metres below z = 0 (the ceiling), or is flush with it."""
    p = Piece(C["lamp"], 0.5, 0.5, drop)
    if drop < 0.2:
        p.box((-0.22, 0.22), (-0.22, 0.22), (-0.1, 0.02), kit.glow, shape="soft")
        return p
    style, r = int(kit.rng.integers(3)), kit.uniform(0.16, 0.26)
    p.rod((0, 0, 0), (0, 0, -drop), 0.006, kit.dark)
    if style == 0:
        p.box((-r, r), (-r, r), (-drop - 0.16, -drop + 0.06), kit.glow, shape="shade")
    elif style == 1:
        p.box(
            (-r * 0.8, r * 0.8),
            (-r * 0.8, r * 0.8),
            (-drop - r, -drop + 0.6 * r),
            kit.glow,
            shape="ball",
        )
    else:
        p.box((-r, r), (-r, r), (-drop - 0.12, -drop + 0.08), kit.dark, shape="shade")
        p.box((-0.05, 0.05), (-0.05, 0.05), (-drop - 0.12, -drop - 0.02), kit.glow, shape="ball")
    return p


def picture(kit: Kit, w: float, h: float) -> Piece:
    """Build a framed painting, with a mount at times."""
    p = Piece(C["picture"], w, 0.03, h)
    frame = [kit.wood, kit.dark, kit.white, kit.brass][int(kit.rng.integers(4))]
    p.box((-w / 2, w / 2), (0, 0.022), (0, h), frame)
    e = 0.025
    if kit.chance(0.5):
        p.box((-w / 2 + e, w / 2 - e), (0.02, 0.0235), (e, h - e), kit.pages)
        e += 0.06
    p.box((-w / 2 + e, w / 2 - e), (0.021, 0.026), (e, h - e), kit.art(), shape="panel")
    return p


def television(kit: Kit, on_stand: bool) -> Piece:
    """Build a flat television that faces +y."""
    w = kit.uniform(0.95, 1.35)
    h = w * 0.58
    p = Piece(C["television"], w, 0.25, h + 0.06)
    z = 0.06 if on_stand else 0.0
    p.box((-w / 2, w / 2), (0.08, 0.12), (z, z + h), kit.dark)
    lit = kit.chance(0.6)
    p.box(
        (-w / 2 + 0.015, w / 2 - 0.015),
        (0.119, 0.123),
        (z + 0.015, z + h - 0.015),
        kit.screen(True, lit),
        shape="panel",
    )
    if on_stand:
        p.box((-0.2, 0.2), (0.0, 0.22), (0, 0.015), kit.dark)
        p.box((-0.04, 0.04), (0.07, 0.11), (0, 0.2), kit.dark)
    return p


def whiteboard(kit: Kit) -> Piece:
    """Build a whiteboard with some writing on it."""
    w, h = kit.uniform(1.3, 2.0), kit.uniform(0.9, 1.15)
    p = Piece(C["whiteboard"], w, 0.05, h)
    p.box((-w / 2, w / 2), (0, 0.02), (0, h), kit.metal)
    p.box((-w / 2 + 0.02, w / 2 - 0.02), (0.019, 0.022), (0.02, h - 0.02), kit.white)
    inks = [kit.paint(kit.color(0.9, 0.6)), kit.dark]
    for i in range(int(kit.rng.integers(3, 8))):
        a, z = kit.uniform(-w / 2 + 0.1, 0), h - 0.15 - 0.11 * i
        if z > 0.08:
            p.box(
                (a, a + kit.uniform(0.2, w / 2 - 0.1)), (0.021, 0.0235), (z, z + 0.022), inks[i % 2]
            )
    p.box((-w / 4, w / 4), (0, 0.08), (-0.03, 0.0), kit.metal)
    return p


def notices(kit: Kit) -> Piece:
    """Build sheets of paper pinned to the wall."""
    p = Piece(C["paper"], 0.8, 0.01, 0.6)
    for i in range(int(kit.rng.integers(2, 6))):
        x, z = -0.3 + 0.28 * (i % 3), 0.32 * (i // 3) + kit.uniform(0, 0.05)
        mat = kit.pages if kit.chance(0.6) else kit.paint(kit.color(0.3, 0.95))
        p.box((x - 0.105, x + 0.105), (0, 0.004), (z, z + 0.28), mat)
    return p


def rug(kit: Kit, w: float, d: float, round_: bool = False) -> Piece:
    """Build a rug with a border."""
    p = Piece(C["floor mat"], w, d, 0.012)
    main, edge = kit.new_fabric(0.5, 0.65), kit.new_fabric(0.5, 0.5)
    shape = "disc" if round_ else "slab"
    p.box((-w / 2, w / 2), (0, d), (-0.005, 0.002), edge, shape=shape)
    m = 0.08
    p.box((-w / 2 + m, w / 2 - m), (m, d - m), (-0.005, 0.003), main, shape=shape)
    return p


def curtains(kit: Kit, w: float, z0: float, z1: float, sheer: bool) -> Piece:
    """Build a rail with a curtain on either side of an opening of width w."""
    p = Piece(C["curtain"], w + 0.9, 0.16, z1)
    p.rod((-w / 2 - 0.45, 0.09, z1 + 0.03), (w / 2 + 0.45, 0.09, z1 + 0.03), 0.015, kit.metal)
    cloth = kit.new_fabric(0.35 if sheer else 0.6, 0.85)
    part = kit.uniform(0.35, 0.55)
    for s in (-1, 1):
        c = s * (w / 2 + 0.42 - part / 2)
        p.box((c - part / 2, c + part / 2), (0.05, 0.13), (z0, z1 + 0.03), cloth, shape="cloth")
    return p


def blinds(kit: Kit, w: float, h: float) -> Piece:
    """Build slatted blinds, lowered part of the way; z = 0 is the head of the window."""
    p = Piece(C["blinds"], w, 0.06, h)
    drop = h * kit.uniform(0.25, 0.6)
    slat = kit.white if kit.chance(0.6) else kit.wood
    n = max(3, int(drop / 0.06))
    p.box((-w / 2, w / 2), (0.0, 0.06), (-0.06, 0), slat)
    for i in range(n):
        z = -0.08 - 0.06 * i
        p.box((-w / 2, w / 2), (0.0, 0.055), (z - 0.004, z), slat, rot=rot_x(0.6))
    return p


def radiator(kit: Kit, w: float) -> Piece:
    """Build a ribbed radiator."""
    p = Piece(C["otherstructure"], w, 0.12, 0.62)
    n = int(w / 0.07)
    for i in range(n):
        x = -w / 2 + (i + 0.5) * w / n
        p.box((x - 0.025, x + 0.025), (0.02, 0.11), (0.1, 0.62), kit.white)
    p.box((-w / 2, w / 2), (0.04, 0.09), (0.14, 0.58), kit.white)
    return p
