"""Rooms: a data set of furnished rooms, rendered on the CPU with aligned modalities."""

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
