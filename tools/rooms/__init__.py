"""Rooms: a data set of furnished rooms, rendered on the CPU with aligned modalities.

``generate.make_rooms`` renders a whole data set, ``sample.render_room`` one sample: start there.
A sample draws a room (``interior``), furnishes it (``furniture``) with textures (``materials``) and
traces rays through it (``rendering``). ``sample_files`` writes the images; ``derived_modalities``
computes edges, spectral bands and temperatures from them. Commands: ``tools/make_rooms.py``,
``tools/make_modalities.py``.
"""

from tools.rooms.classes import NYU40_CLASSES, ROOM_TYPES
from tools.rooms.furniture.sh3f import ModelLibrary, Sh3fError, load_library
from tools.rooms.rendering.tracer import TracerMissingError
from tools.rooms.sample import RenderError, RoomSample, render_room

__all__ = [
    "NYU40_CLASSES",
    "ROOM_TYPES",
    "ModelLibrary",
    "RenderError",
    "RoomSample",
    "Sh3fError",
    "TracerMissingError",
    "load_library",
    "render_room",
]
