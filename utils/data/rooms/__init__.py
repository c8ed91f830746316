"""Rooms: a data set of furnished rooms, rendered on the CPU with aligned modalities."""

from utils.data.rooms.classes import NYU40_CLASSES, ROOM_TYPES
from utils.data.rooms.sample import RenderError, RoomSample, render_room
from utils.data.rooms.sh3f import ModelLibrary, Sh3fError, load_library
from utils.data.rooms.tracer import TracerMissingError

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
