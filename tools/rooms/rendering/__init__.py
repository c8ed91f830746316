"""Rendering: from a furnished room to images.

``shapes`` and ``mesh`` hold geometry, ``tracer`` wraps the ray tracer embreex, ``camera`` chooses a
view, ``surface`` looks up colours at ray hits, ``lighting`` and ``irradiance`` compute direct and
indirect light. Start with ``render.render``.
"""
