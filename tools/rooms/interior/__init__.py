"""Interior: the walls of a room and what stands where.

``shell`` builds floor, ceiling and walls with their openings, ``floor_plan`` places pieces without
collisions, ``groups`` arranges pieces that belong together, ``dressing`` adds small objects.
Start with ``recipes.furnish``, which furnishes each type of room.
"""
