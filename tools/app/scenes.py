"""One set of aligned images, cut to the model's size: an example, an upload, or a fresh room."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multimae.images.pixels import Pixels
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec
from tools.app.strokes import Array
from tools.app.uploads import SUFFIXES, check_one_view, read_upload
from tools.rooms.classes import NYU40_CLASSES, ROOM_TYPES
from utils.data.transforms import EvalTransform
from utils.logs.errors import UserError


@dataclass(frozen=True)
class Scene:
    """Stored values at the model's resolution; any non-empty subset of its inputs.

    Attributes:
        title: What the page calls it.
        pixels: ``(h, w)`` or ``(h, w, C)`` by modality.
    """

    title: str
    pixels: Mapping[str, Array]


def cut(pixels: Mapping[str, Pixels], spec: ModelSpec, title: str) -> Scene:
    """The largest centred square of images of one view."""
    rows = [m for m in spec.inputs if m.name in pixels]
    views = EvalTransform(rows, spec.image_size)(pixels)
    arrays = {name: view.numpy() for name, view in views.items()}
    return Scene(title, {m.name: _channels_last(arrays[m.name], m) for m in rows})


def from_files(files: Mapping[str, Path], spec: ModelSpec, title: str) -> Scene:
    """A scene from one file per modality.

    Raises:
        UserError: No file, a file that is refused, or files of different views.
    """
    rows = [m for m in spec.inputs if m.name in files]
    if not rows:
        raise UserError("Choose at least one image: " + ", ".join(m.name for m in spec.inputs))
    pixels = {m.name: read_upload(files[m.name], m, spec.patch_size) for m in rows}
    check_one_view(pixels, {name: path.name for name, path in files.items()})
    return cut(pixels, spec, title)


def examples(folder: Path, spec: ModelSpec) -> list[Scene]:
    """Scenes of a folder laid out like a data set, by name.

    Raises:
        UserError: There is none, or one is refused.
    """
    found: dict[str, dict[str, Path]] = {}
    for m in spec.inputs:
        root = folder / m.data_folder
        for path in root.rglob("*"):
            if path.suffix.lower() in SUFFIXES:
                stem = path.relative_to(root).with_suffix("").as_posix()
                found.setdefault(stem, {})[m.name] = path
    if not found:
        wanted = " or ".join(str(folder / m.data_folder) for m in spec.inputs)
        raise UserError(f"there are no example images: {wanted} must hold some")
    return [from_files(found[stem], spec, _title(stem)) for stem in sorted(found)]


def _title(stem: str) -> str:
    kind, _, name = stem.rpartition("/")
    return (kind or name).rpartition("/")[2].replace("_", " ")


def _channels_last(array: Array, modality: Modality) -> Array:
    """``(C, h, w)`` -> ``(h, w, C)``, or ``(h, w)`` of one channel."""
    if modality.is_labels:
        return array
    last = np.ascontiguousarray(array.transpose(1, 2, 0))
    return last[..., 0] if modality.num_channels == 1 else last


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
