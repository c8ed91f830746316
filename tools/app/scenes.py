"""Aligned images at the model's resolution: an example, an upload or a rendered room."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multimae.images.pixels import Pixels
from multimae.images.readers import SUFFIXES
from multimae.nn.tokens import as_size
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec
from tools.app.strokes import Array
from tools.app.uploads import check_one_view, read_upload
from tools.rooms.classes import NYU40_CLASSES, ROOM_TYPES
from utils.data.transforms import EvalTransform


@dataclass(frozen=True)
class Scene:
    """Aligned images of any non-empty subset of the model's inputs, as stored values.

    Attributes:
        title: Name on the page.
        pixels: ``(h, w)`` or ``(h, w, C)`` by modality.
    """

    title: str
    pixels: Mapping[str, Array]


def crop_scene(pixels: Mapping[str, Pixels], spec: ModelSpec, title: str) -> Scene:
    """Crop the largest centered square and resize it to the model's input size."""
    modalities = [m for m in spec.inputs if m.name in pixels]
    views = EvalTransform(modalities, spec.image_size)(pixels)
    arrays = {name: view.numpy() for name, view in views.items()}
    return Scene(title, {m.name: _channels_last(arrays[m.name], m) for m in modalities})


def from_files(files: Mapping[str, Path], spec: ModelSpec, title: str) -> Scene:
    """Read a scene from one file per modality.

    Raises:
        UserError: No file, an invalid file, or files with different aspect ratios.
    """
    modalities = [m for m in spec.inputs if m.name in files]
    if not modalities:
        raise UserError("Choose at least one image: " + ", ".join(m.name for m in spec.inputs))
    pixels = {m.name: read_upload(files[m.name], m, spec.patch_size) for m in modalities}
    check_one_view(pixels, {name: path.name for name, path in files.items()})
    return crop_scene(pixels, spec, title)


def examples(folder: Path, spec: ModelSpec) -> list[Scene]:
    """Read all scenes of a data folder, sorted by name.

    Raises:
        UserError: There is no image, or one is invalid.
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
        raise UserError(f"no example images in {wanted}")
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
    """Return whether the ray tracer is installed and renders all inputs of the model."""
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
    """Render room ``number`` of the validation split; deterministic.

    Raises:
        UserError: The number is out of range, or no camera view of that room is acceptable.
    """
    from tools.rooms.sample import RenderError, render_room
    from tools.rooms.sample_files import aligned_images

    if not 0 <= number < MAX_NUMBER:
        raise UserError(f"Rooms are numbered from 0 to {MAX_NUMBER - 1}.")
    side = max(SIDE, *as_size(spec.image_size))
    try:
        with _lock:
            sample = render_room(number, "val", number % len(ROOM_TYPES), side)
    except RenderError as err:
        raise UserError(f"Room {number} has no acceptable view. Try another number.") from err
    images = aligned_images(sample)
    title = f"{sample.room_type.replace('_', ' ')} {number}"
    return crop_scene({m.name: images[m.data_folder] for m in spec.inputs}, spec, title)
