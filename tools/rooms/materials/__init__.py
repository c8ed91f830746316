"""Materials: what surfaces look like.

``palette`` draws the colours and materials of one room, ``patterns`` computes tileable textures
(wood, tiles, fabric, prints), ``textures`` samples them at ray hits. Start with ``palette.Kit``.
"""
