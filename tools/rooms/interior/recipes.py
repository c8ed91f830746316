"""What stands in each type of room, and where."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.rooms.furniture import bathroom as ba
from tools.rooms.furniture import fixtures as fx
from tools.rooms.furniture import kitchen as ki
from tools.rooms.furniture import seating as st
from tools.rooms.furniture import storage as sg
from tools.rooms.furniture import tables as tb
from tools.rooms.interior.dressing import decorate, dress_windows, light
from tools.rooms.interior.floor_plan import FloorPlan, Spot
from tools.rooms.interior.groups import (
    centre_rug,
    clutter_on,
    desk_place,
    laid_table,
    lamp_on,
    tv_corner,
)

SIZES: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "bathroom": ((2.3, 3.4), (2.4, 3.4)),
    "bedroom": ((3.4, 4.8), (3.5, 4.8)),
    "dining_room": ((3.6, 5.2), (3.6, 5.0)),
    "kitchen": ((3.0, 4.6), (3.2, 4.6)),
    "library": ((3.4, 5.0), (3.6, 5.2)),
    "living_room": ((4.0, 5.8), (4.0, 5.6)),
    "office": ((3.2, 5.0), (3.4, 5.0)),
}
"""Ranges of width and depth of each room type, metres."""


def furnish(plan: FloorPlan, room: str) -> None:
    """Furnish a room.

    Args:
        plan: The empty room.
        room: A key of SIZES.
    """
    _RECIPES[room](plan)
    dress_windows(plan, room)
    decorate(plan, room)
    light(plan, room)


def bedroom(plan: FloorPlan) -> None:
    """A bed between night stands, a wardrobe, a dresser, perhaps a desk or armchair."""
    kit = plan.kit
    double = kit.chance(0.7)
    bed = plan.against(
        plan.make("bed", lambda k: st.bed(k, double), (2.1, 2.4, 1.6)),
        0.0,
        0.5,
        middle=True,
        tries=40,
    )
    plan.add_focus(bed)
    if bed is not None:
        for side in (-1, 1):
            stand = plan.make("night stand", lambda k: sg.cupboard(k, "night"), (0.7, 0.6, 0.75))
            lamp_on(plan, plan.beside(stand, bed, side))
        plan.above(fx.picture(kit, kit.uniform(0.7, 1.2), kit.uniform(0.45, 0.6)), bed, 1.45)
        if kit.chance(0.6):
            w = bed.piece.width + 1.1
            x, y = bed.local(0.0, bed.piece.depth - 0.9)
            plan.put(Spot(fx.rug(kit, w, 1.5), x, y, 0.002, bed.yaw), False)
    plan.add_focus(
        plan.against(plan.make("wardrobe", lambda k: sg.cupboard(k, "wardrobe")), 0.0, 0.5)
    )
    dresser = plan.against(
        plan.make("dresser", lambda k: sg.cupboard(k, "dresser"), (1.8, 0.7, 1.3)), 0.0, 0.5
    )
    plan.add_focus(dresser)
    clutter_on(plan, dresser)
    if dresser is not None:
        if kit.chance(0.6):
            plan.above(ba.mirror(kit, 0.7, 0.8), dresser, dresser.piece.height + 0.25)
        else:
            plan.above(fx.picture(kit, 0.6, 0.5), dresser, dresser.piece.height + 0.35)
    if kit.chance(0.5):
        desk_place(plan, plan.shell.walls)
    if kit.chance(0.5):
        plan.scatter(plan.make("armchair", lambda k: st.sofa(k, 1), (1.1, 1.1, 1.2)))
    if kit.chance(0.5):
        plan.scatter(ba.basket(kit))
    if kit.chance(0.4):
        plan.against(sg.bookshelf(kit), 0.0, 0.4)


def living_room(plan: FloorPlan) -> None:
    """A sofa facing a television over a coffee table, armchairs, shelves, lamps."""
    kit = plan.kit
    sofa = plan.against(
        plan.make("sofa", lambda k: st.sofa(k, 3 if k.chance(0.6) else 2), (2.6, 1.2, 1.2)),
        0.0,
        1.2,
        middle=True,
        tries=40,
    )
    plan.add_focus(sofa)
    if sofa is not None:
        plan.above(fx.picture(kit, kit.uniform(0.8, 1.4), kit.uniform(0.5, 0.7)), sofa, 1.3)
        x, y = sofa.local(0.0, sofa.piece.depth + 0.75)
        w, d = kit.uniform(0.9, 1.2), kit.uniform(0.5, 0.65)
        low = plan.make(
            "coffee table", lambda k: tb.table(k, w, d, k.uniform(0.38, 0.46)), (1.4, 0.9, 0.55)
        )
        spot = plan.on_floor(low, x, y, sofa.yaw)
        clutter_on(plan, spot)
        rx, ry = sofa.local(0.0, sofa.piece.depth - 0.3)
        plan.put(Spot(fx.rug(kit, sofa.piece.width + 0.5, 2.1), rx, ry, 0.002, sofa.yaw), False)
        facing = (
            [w for w in plan.shell.walls if float(w.inward @ sofa.wall.inward) < -0.5]
            if sofa.wall
            else None
        )
        tv_corner(plan, facing)
        for side in (-1, 1):
            if kit.chance(0.5):
                stand = tb.table(kit, 0.45, 0.45, 0.5)
                lamp_on(plan, plan.beside(stand, sofa, side))
            else:
                plan.beside(
                    plan.make("floor lamp", fx.floor_lamp, (0.6, 0.6, 2.1)), sofa, side, 0.05
                )
        for side in (-1, 1):
            if kit.chance(0.6):
                chair = plan.make("armchair", lambda k: st.sofa(k, 1), (1.1, 1.1, 1.2))
                ax, ay = sofa.local(side * (sofa.piece.width / 2 + 0.35), sofa.piece.depth + 0.85)
                plan.on_floor(chair, ax, ay, sofa.yaw + side * np.pi / 2)
    else:
        tv_corner(plan, None)
    for _ in range(int(kit.rng.integers(1, 3))):
        plan.add_focus(
            plan.against(plan.make("bookshelf", sg.bookshelf, (1.8, 0.6, 2.3)), 0.0, 0.4)
        )
    if kit.chance(0.5):
        clutter_on(
            plan, plan.against(plan.make("cabinet", lambda k: sg.cupboard(k, "cabinet")), 0.0, 0.4)
        )
    if kit.chance(0.4):
        plan.scatter(st.ottoman(kit))


def dining_room(plan: FloorPlan) -> None:
    """A table in the middle with chairs around it, a sideboard, a cabinet."""
    kit, shell = plan.kit, plan.shell
    round_ = kit.chance(0.35)
    w = kit.uniform(1.0, 1.25) if round_ else kit.uniform(1.5, 2.0)
    d = w if round_ else kit.uniform(0.85, 1.0)
    yaw = kit.pick(0.0, np.pi / 2)
    cx = shell.width / 2 + kit.uniform(-0.25, 0.25)
    cy = shell.depth / 2 + kit.uniform(-0.25, 0.25)
    laid_table(plan, plan.make("table", lambda k: tb.table(k, w, d), (2.1, 1.2, 0.85)), cx, cy, yaw)
    centre_rug(plan, fx.rug(kit, w + 1.3, d + 1.3), cx, cy, yaw)
    for _ in range(2):
        side = plan.against(plan.make("cabinet", lambda k: sg.cupboard(k, "cabinet")), 0.0, 0.3)
        plan.add_focus(side)
        clutter_on(plan, side)
        if side is not None:
            plan.above(fx.picture(kit, kit.uniform(0.6, 1.1), 0.5), side, 1.4)
    if kit.chance(0.5):
        plan.against(sg.bookshelf(kit), 0.0, 0.3)


def kitchen(plan: FloorPlan) -> None:
    """Base units under wall units along one or two walls, a fridge, a small table."""
    kit = plan.kit
    fridge = plan.make("refrigerator", ki.fridge, (1.0, 0.85, 2.2))
    walls = sorted(plan.shell.walls, key=lambda w: any(g.kind == "door" for g in w.openings))
    main = walls[int(kit.rng.integers(2))]
    left = kit.chance(0.5)
    room = main.length - fridge.width - 0.12
    door = [g for g in main.openings if g.kind == "door"]
    width = min(room, 3.6) if not door else min(room, main.length - 1.5)
    run = ki.counter_run(kit, width, True, True)
    first = width / 2 + 0.03 if left else main.length - width / 2 - 0.03
    spot = plan.try_wall(run, main, first, 0.0, 0.5) or plan.against(run, 0.0, 0.5, tries=30)
    plan.add_focus(spot)
    if spot is not None:
        placed = plan.beside(fridge, spot, 1) or plan.beside(fridge, spot, -1)
        plan.add_focus(placed or plan.against(fridge, 0.0, 0.4))
        _upper(plan, spot, width)
    other = ki.counter_run(kit, kit.uniform(1.1, 1.8), False, False)
    second = plan.against(other, 0.0, 0.6, tries=10) if kit.chance(0.7) else None
    if second is not None:
        _upper(plan, second, other.width)
    w = kit.uniform(0.8, 1.0)
    if kit.chance(0.85):
        top = tb.table(kit, w if kit.chance(0.5) else w + 0.3, w)
        for _ in range(6):
            x = plan.shell.width * kit.uniform(0.35, 0.65)
            y = plan.shell.depth * kit.uniform(0.35, 0.65)
            if plan.free(
                (x - w / 2 - 0.4, y - w / 2 - 0.4, 0, x + w / 2 + 0.4, y + w / 2 + 0.4, 1)
            ):
                laid_table(plan, top, x, y, kit.pick(0, np.pi / 2))
                break
    elif kit.chance(0.6):
        plan.scatter(st.stool(kit))


def _upper(plan: FloorPlan, spot: Spot, width: float) -> None:
    """Hang wall units, and a hood over the stove, above a worktop where no window is."""
    n = max(1, round(width / 0.55))
    stove = spot.piece.marks.get("stove")
    hooded = -1 if stove is None else int((stove + width / 2) / (width / n))
    if spot.wall is None:
        return
    for i in range(n):
        u = spot.u + (i - (n - 1) / 2) * width / n
        piece = (ki.hood if i == hooded else ki.wall_units)(plan.kit, width / n)
        plan.try_wall(piece, spot.wall, u, 1.45, 0.0)


def bathroom(plan: FloorPlan) -> None:
    """A tub with its curtain, a toilet, a basin below a mirror, towels."""
    kit = plan.kit
    tub = plan.against(plan.make("bathtub", ba.bathtub, (2.0, 1.1, 0.9)), 0.0, 0.4, tries=40)
    plan.add_focus(tub)
    if tub is not None and kit.chance(0.6):
        x, y = tub.local(0.0, tub.piece.depth - 0.1)
        plan.put(Spot(ba.shower_curtain(kit, tub.piece.width), x, y, 0.0, tub.yaw), False)
    basin = plan.against(plan.make("sink", ba.vanity, (1.3, 0.7, 1.2)), 0.0, 0.5, tries=30)
    plan.add_focus(basin)
    if basin is not None:
        plan.above(ba.mirror(kit, min(0.9, basin.piece.width), kit.uniform(0.7, 0.9)), basin, 1.15)
    wc = plan.against(plan.make("toilet", ba.toilet, (0.6, 0.9, 1.1)), 0.0, 0.45, tries=30)
    plan.add_focus(wc)
    if wc is not None and wc.wall is not None:
        for side in (-1, 1):
            if plan.try_wall(ba.paper_roll(kit), wc.wall, wc.u + side * 0.36, 0.7, 0.0):
                break
    plan.hang(ba.towel_rail(kit), 0.85)
    if kit.chance(0.5):
        plan.scatter(plan.make("cabinet", lambda k: sg.cupboard(k, "night"), (0.7, 0.5, 1.9)))
    if kit.chance(0.6):
        plan.scatter(ba.basket(kit))
    for spot in (tub, basin):
        if spot is not None and kit.chance(0.7):
            x, y = spot.local(0.0, spot.piece.depth + 0.05)
            plan.put(Spot(fx.rug(kit, 0.8, 0.5), x, y, 0.002, spot.yaw), False)


def office(plan: FloorPlan) -> None:
    """One to three desks with swivel chairs, a whiteboard, shelves, boxes, papers."""
    kit = plan.kit
    for _ in range(int(kit.rng.integers(2, 4))):
        plan.add_focus(desk_place(plan, plan.shell.walls))
    plan.hang(fx.whiteboard(kit), 1.0)
    for _ in range(int(kit.rng.integers(1, 3))):
        plan.add_focus(
            plan.against(plan.make("bookshelf", sg.bookshelf, (1.8, 0.6, 2.3)), 0.0, 0.3)
        )
    for _ in range(2):
        clutter_on(
            plan, plan.against(plan.make("cabinet", lambda k: sg.cupboard(k, "cabinet")), 0.0, 0.3)
        )
    for _ in range(2):
        if kit.chance(0.7):
            plan.scatter(plan.make("box", fx.boxes, (0.7, 0.7, 1.0)))
    plan.hang(fx.notices(kit), 1.3)
    if kit.chance(0.6):
        plan.scatter(fx.bag(kit))


def library(plan: FloorPlan) -> None:
    """Walls of bookcases, a reading table or armchairs, a standing lamp."""
    kit = plan.kit
    shelf = sg.bookshelf(kit)
    for _ in range(int(kit.rng.integers(5, 9))):
        model = plan.make("bookshelf", sg.bookshelf, (1.8, 0.6, 2.4)) if kit.chance(0.4) else shelf
        plan.add_focus(plan.against(model, 0.0, 0.55, tries=20))
    cx, cy = plan.shell.width / 2, plan.shell.depth / 2
    if kit.chance(0.5):
        w = kit.uniform(1.2, 1.6)
        laid_table(plan, tb.table(kit, w, 0.8), cx, cy, kit.pick(0.0, np.pi / 2))
    else:
        yaw = kit.uniform(0, 6.28)
        centre_rug(plan, fx.rug(kit, 2.0, 2.0, True), cx, cy, yaw)
        seat = plan.make("armchair", lambda k: st.sofa(k, 1), (1.1, 1.1, 1.2))
        for s in (-0.75, 0.75):
            spot = plan.on_floor(
                seat, cx + s, cy, np.pi / 2 * (1 if s > 0 else -1) + kit.uniform(-0.4, 0.4)
            )
            plan.add_focus(spot)
        clutter_on(plan, plan.on_floor(tb.table(kit, 0.5, 0.5, 0.45), cx, cy + 0.1, 0.0))
    plan.scatter(plan.make("floor lamp", fx.floor_lamp, (0.6, 0.6, 2.1)))
    if kit.chance(0.5):
        desk_place(plan, plan.shell.walls)


_RECIPES: dict[str, Callable[[FloorPlan], None]] = {
    "bathroom": bathroom,
    "bedroom": bedroom,
    "dining_room": dining_room,
    "kitchen": kitchen,
    "library": library,
    "living_room": living_room,
    "office": office,
}
