"""Materials: the colours and patterns of surfaces.

``palette.Kit`` draws the materials of one room so that they match: start there. ``textures`` holds
the material table of a room and evaluates it at surface points; ``patterns`` are the procedural
patterns it uses (wood, tiles, fabric, prints).
"""
