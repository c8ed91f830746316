"""Groups of pieces that belong together: a laid table, a desk with its chair."""

from __future__ import annotations

import numpy as np

from tools.rooms.furniture import fixtures as fx
from tools.rooms.furniture import seating as st
from tools.rooms.furniture import storage as sg
from tools.rooms.furniture import tables as tb
from tools.rooms.interior.floor_plan import FloorPlan, Spot
from tools.rooms.interior.shell import Wall
from tools.rooms.rendering.mesh import Piece


def lamp_on(plan: FloorPlan, spot: Spot | None, p: float = 0.8) -> None:
    """Stand a lamp (or some clutter) on a low piece."""
    if spot is None:
        return
    z = spot.piece.height
    if plan.kit.chance(p):
        lamp = plan.make("table lamp", fx.table_lamp, (0.45, 0.45, 0.75))
        x, y = spot.local(0.0, max(0.02, spot.piece.depth / 2 - lamp.depth / 2))
        plan.put(Spot(lamp, x, y, z, spot.yaw), False)
    else:
        tidy = Piece(spot.piece.cls, 0.2, 0.2, 0.2)
        tb.clutter(tidy, plan.kit, 0.0, 0.1, 0.0)
        plan.put(Spot(tidy, spot.x, spot.y, z, spot.yaw), False)


def clutter_on(plan: FloorPlan, spot: Spot | None) -> None:
    """Put a few things on top of a cupboard."""
    if spot is None:
        return
    tidy = Piece(spot.piece.cls, 0.2, 0.2, 0.2)
    for side in (-0.3, 0.0, 0.3):
        if plan.kit.chance(0.65):
            tb.clutter(tidy, plan.kit, side * spot.piece.width, 0.12, 0.0)
    plan.put(Spot(tidy, spot.x, spot.y, spot.piece.height, spot.yaw), False)


def desk_place(plan: FloorPlan, walls: list[Wall]) -> Spot | None:
    """Place a desk with a chair before it."""
    kit = plan.kit
    top = plan.make("desk", tb.desk, (1.9, 0.95, 0.85))
    spot = plan.against(top, 0.0, 0.75, walls)
    if spot is None:
        return None
    if top.raw:
        # Imported desks come bare.
        tidy = Piece(top.cls, 0.2, 0.2, 0.2)
        tb.clutter(tidy, kit, 0.35 * top.width, 0.12, 0.0)
        tidy.put(tb.monitor(kit), 0.0, 0.05, 0.0)
        plan.put(Spot(tidy, spot.x, spot.y, top.height, spot.yaw), False)
    seat = plan.make("office chair", st.office_chair, (0.8, 0.8, 1.4))
    x, y = spot.local(kit.uniform(-0.15, 0.15), spot.piece.depth + 0.33)
    plan.on_floor(seat, x, y, spot.yaw + np.pi + kit.uniform(-0.4, 0.4))
    return spot


def tv_corner(plan: FloorPlan, walls: list[Wall] | None) -> None:
    """Place a low cupboard with a television on it."""
    stand = sg.cupboard(plan.kit, "tv")
    spot = plan.against(stand, 0.0, 0.5, walls, middle=True)
    plan.add_focus(spot)
    if spot is None:
        return
    tv = plan.make("television", lambda k: fx.television(k, True), (1.4, 0.4, 0.95))
    x, y = spot.local(0.0, 0.08)
    plan.put(Spot(tv, x, y, stand.height, spot.yaw))


def laid_table(plan: FloorPlan, top: Piece, cx: float, cy: float, yaw: float) -> None:
    """Stand a laid table at (cx, cy) with chairs around it."""
    kit = plan.kit
    w, d = top.width, top.depth
    n = 1 if w < 1.3 else (2 if w < 1.75 else 3)
    xs = [(i - (n - 1) / 2) * 0.6 for i in range(n)]
    plates = [(x, 0.2) for x in xs] + [(x, d - 0.2) for x in xs]
    tb.set_table(top, kit, plates if kit.chance(0.7) else [])
    spot = plan.on_floor(top, cx, cy, yaw)
    plan.add_focus(spot)
    if spot is None:
        return
    model = plan.make("chair", st.chair, (0.65, 0.7, 1.2))
    seats = [(x, -0.02, 0.0) for x in xs] + [(x, d + 0.02, np.pi) for x in xs]
    if kit.chance(0.75):
        seats += [(-w / 2 - 0.02, d / 2, -np.pi / 2), (w / 2 + 0.02, d / 2, np.pi / 2)]
    for x, y, turn in seats:
        # The seat reaches under the top: chairs are pushed in by a hand's breadth or two.
        out = model.depth - kit.uniform(0.1, 0.22)
        px, py = spot.local(x + np.sin(turn) * out, y - np.cos(turn) * out)
        chair = Spot(model, px, py, 0.0, yaw + turn + kit.uniform(-0.12, 0.12))
        box = plan.bounds(chair)
        table = plan.boxes.pop(plan.boxes.index(plan.bounds(spot)))
        if plan.free(box):
            plan.put(chair)
        plan.boxes.append(table)


def centre_rug(plan: FloorPlan, rug: Piece, cx: float, cy: float, yaw: float) -> None:
    """Lay a rug with its centre at (cx, cy)."""
    half = rug.depth / 2
    spot = Spot(rug, cx + np.sin(yaw) * half, cy - np.cos(yaw) * half, 0.002, yaw)
    plan.put(spot, False)
