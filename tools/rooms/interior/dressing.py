"""What every room gets: curtains, pictures, plants and a ceiling lamp."""

from __future__ import annotations

from tools.rooms.furniture import fixtures as fx
from tools.rooms.furniture import storage as sg
from tools.rooms.interior.floor_plan import FloorPlan, Spot


def dress_windows(plan: FloorPlan, room: str) -> None:
    """Hang curtains or blinds at windows, and radiators below some."""
    kit = plan.kit
    style = kit.uniform(0, 1)
    for wall in plan.shell.walls:
        for gap in wall.openings:
            if gap.kind != "window":
                continue
            u, w = (gap.u0 + gap.u1) / 2, gap.u1 - gap.u0
            if room in ("kitchen", "bathroom", "office") or style < 0.3:
                if style < 0.6:
                    x, y = wall.at(u, -0.07)
                    plan.put(
                        Spot(fx.blinds(kit, w - 0.02, gap.z1 - gap.z0), x, y, gap.z1, wall.yaw),
                        False,
                    )
            else:
                low = 0.05 if kit.chance(0.6) else max(0.05, gap.z0 - 0.15)
                x, y = wall.at(u, 0.0)
                part = fx.curtains(kit, w, low, gap.z1 + 0.08, kit.chance(0.4))
                if u - w / 2 > 0.5 and u + w / 2 < wall.length - 0.5:
                    plan.put(Spot(part, x, y, 0.0, wall.yaw), False)
            if gap.z0 > 0.75 and kit.chance(0.6):
                plan.try_wall(fx.radiator(kit, min(w, 1.2)), wall, u, 0.0, 0.0)


def decorate(plan: FloorPlan, room: str) -> None:
    """Hang pictures, shelves and coats, and stand plants, boxes and bags about."""
    kit = plan.kit
    if room != "bathroom":
        for _ in range(int(kit.rng.integers(1, 4))):
            plan.hang(
                fx.picture(kit, kit.uniform(0.35, 0.9), kit.uniform(0.35, 0.7)),
                kit.uniform(1.3, 1.5),
            )
        if kit.chance(0.4):
            plan.hang(sg.wall_shelf(kit), 1.35)
        if kit.chance(0.35):
            plan.hang(fx.coat_rack(kit), 0.95)
    for _ in range(int(kit.rng.integers(0, 3))):
        if room != "bathroom" or kit.chance(0.3):
            plan.scatter(plan.make("plant", fx.plant, (0.9, 0.9, 2.0)))
    if kit.chance(0.25):
        plan.scatter(plan.make("box", fx.boxes, (0.7, 0.7, 1.0)))
    if plan.library is not None and kit.chance(0.2):
        person = plan.library.draw("person", plan.split, kit, (1.0, 1.0, 2.0))
        if person is not None:
            plan.scatter(person, 16)


def light(plan: FloorPlan, room: str) -> None:
    """Hang the ceiling lamp: low over dining tables, else near the ceiling."""
    kit, shell = plan.kit, plan.shell
    drop = 0.1 if room in ("bathroom", "kitchen") and kit.chance(0.7) else kit.uniform(0.35, 0.55)
    if room == "dining_room":
        drop = max(0.4, shell.height - kit.uniform(1.75, 1.9))
    lamp = fx.ceiling_lamp(kit, drop)
    plan.put(Spot(lamp, shell.width / 2, shell.depth / 2, shell.height, 0.0), False)
