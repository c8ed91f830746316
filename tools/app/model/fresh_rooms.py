"""Rooms that nobody has seen, rendered on demand from a number."""

from __future__ import annotations

import threading

from multimae.specs.spec import ModelSpec
from tools.app.model.scene import Scene, cut
from tools.rooms.classes import NYU40_CLASSES, ROOM_TYPES
from utils.logs.errors import UserError

SIDE = 160
MAX_NUMBER = 10**6
_FOLDERS = frozenset({"rgb", "depth", "semseg", "normals"})
_lock = threading.Lock()


def can_render(spec: ModelSpec) -> bool:
    """Whether the ray tracer is installed and the model takes what it renders."""
    try:
        from tools.rooms.rendering.tracer import require_tracer

        require_tracer()
    except (ImportError, RuntimeError):
        return False
    return all(
        m.data_folder in _FOLDERS and (not m.is_labels or m.num_classes == len(NYU40_CLASSES))
        for m in spec.inputs
    )


def render_scene(number: int, spec: ModelSpec) -> Scene:
    """Room ``number``: always the same one, of held-out shapes.

    Raises:
        UserError: The number is out of range, or leads to no acceptable view.
    """
    from tools.rooms.sample import RenderError, render_room
    from tools.rooms.sample_files import aligned_images

    if not 0 <= number < MAX_NUMBER:
        raise UserError(f"Rooms are numbered from 0 to {MAX_NUMBER - 1}.")
    side = max(SIDE, spec.image_size)
    try:
        with _lock:
            sample = render_room(number, "val", number % len(ROOM_TYPES), side)
    except RenderError as err:
        raise UserError(f"Room {number} has no acceptable view. Try another number.") from err
    images = aligned_images(sample)
    title = f"{sample.room_type.replace('_', ' ')} {number}"
    return cut({m.name: images[m.data_folder] for m in spec.inputs}, spec, title)
