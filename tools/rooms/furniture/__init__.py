"""Furniture: parametric pieces, and models imported from Sweet Home 3D archives.

``catalog`` maps the name of a piece to the function that builds it; the pieces live in ``seating``,
``tables``, ``storage``, ``kitchen``, ``bathroom`` and ``fixtures``. ``sh3f`` reads archives of
models, ``obj`` their meshes. Start with ``catalog``.
"""
