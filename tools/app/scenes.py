"""Aligned images that the page shows: examples, uploads and rendered rooms."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from multimae.images.pixels import Pixels, size_of
from multimae.images.readers import SUFFIXES
from multimae.images.views import View, centred_view, cut
from multimae.nn.tokens import as_size
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec
from tools.app.strokes import Array
from tools.app.uploads import check_one_view, read_upload
from tools.rooms.classes import NYU40_CLASSES, ROOM_TYPES
from utils.data.transforms import EvalTransform

MAX_EXAMPLES = 24
"""Examples that have a thumbnail."""
MAX_SIDE = 1024
"""Longer side of what heads, features and pseudo-labelling see."""
MAX_SCENE_BYTES = 400_000_000
"""Pixels of all uploads and rooms that are kept."""
MAX_NUMBER = 10**6
SIDE = 160
ROOM, UPLOAD = "room:", "upload:"
"""Prefixes of ids; an example's id is its name."""
_RENDERED = frozenset({"rgb", "depth", "semseg", "normals"})


@dataclass(frozen=True)
class Scene:
    """Aligned images of any non-empty subset of the inputs.

    Attributes:
        id: Name in URLs.
        title: Name on the page.
        pixels: As read, by modality.
        files: File names by modality; empty for rendered rooms.
        read_as: Modalities that the pixels were read as, by name.
        metric: Modalities whose values are millimetres.
        views: What the pre-trained model sees, ``(h, w)`` or ``(h, w, C)`` by modality.
        small: ``pixels``, at most :data:`MAX_SIDE` wide or high.
    """

    id: str
    title: str
    pixels: Mapping[str, Pixels]
    files: Mapping[str, str]
    read_as: Mapping[str, Modality]
    metric: frozenset[str] = frozenset()
    views: Mapping[str, Array] = field(default_factory=dict)
    small: Mapping[str, Pixels] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Memory of the pixels."""
        return sum(np.asarray(p).nbytes for p in (*self.pixels.values(), *self.small.values()))


def crop(pixels: Mapping[str, Pixels], spec: ModelSpec) -> dict[str, Array]:
    """Crop the largest centred view of the model's shape and resize it to the input size."""
    modalities = [m for m in spec.inputs if m.name in pixels]
    views = EvalTransform(modalities, spec.image_size)(pixels)
    return {m.name: _channels_last(views[m.name].numpy(), m) for m in modalities}


_FILE_FIELDS = ("kind", "num_channels", "num_classes", "storage", "max_value", "no_data")


def fitting_inputs(spec: ModelSpec, scene: Scene) -> list[Modality]:
    """Inputs of a model that a scene has, stored as the model's spec says."""
    return [
        m
        for m in spec.inputs
        if (read_as := scene.read_as.get(m.name)) is not None
        and all(getattr(m, key) == getattr(read_as, key) for key in _FILE_FIELDS)
    ]


def crop_box(pixels: Pixels, spec: ModelSpec) -> View:
    """Box of an image that :func:`crop` keeps."""
    return centred_view(size_of(pixels), as_size(spec.image_size))


def shrink(pixels: Pixels, modality: Modality, side: int) -> Array:
    """An image whose longer side is at most ``side``, ``(h, w)`` or ``(h, w, C)``."""
    height, width = size_of(pixels)
    scale = min(1.0, side / max(height, width))
    out = max(1, round(height * scale)), max(1, round(width * scale))
    view = View((height, width), 0, 0, height, width)
    return _channels_last(cut(pixels, modality, view, out).numpy(), modality)


class Scenes:
    """All scenes by id: ``kitchen/000038``, ``room:17`` or ``upload:`` and a hash. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        inputs: Sequence[Modality],
        spec: ModelSpec | None,
        patch_size: int,
        metric: frozenset[str] = frozenset(),
    ) -> None:
        """List the examples and read the first.

        Args:
            folder: A sub-folder per modality.
            inputs: Modalities of all models.
            spec: Of the pre-trained model, which sets :attr:`Scene.views`.
            patch_size: Patch side in pixels.
            metric: Modalities of the examples whose values are millimetres.

        Raises:
            UserError: There is no image, or the first is invalid.
        """
        self.inputs, self.spec, self.patch_size, self.metric = inputs, spec, patch_size, metric
        self._examples: dict[str, dict[str, Path]] = {}
        for m in inputs:
            root = folder / m.data_folder
            for path in sorted(root.rglob("*")):
                if path.suffix.lower() in SUFFIXES:
                    stem = path.relative_to(root).with_suffix("").as_posix()
                    self._examples.setdefault(stem, {})[m.name] = path
        if not self._examples:
            wanted = " or ".join(str(folder / m.data_folder) for m in inputs)
            raise UserError(f"no example images in {wanted}")
        self.ids = sorted(self._examples)[:MAX_EXAMPLES]
        self._kept: OrderedDict[str, Scene] = OrderedDict()
        self._lock, self._rendering = threading.Lock(), threading.Lock()
        self.get(self.ids[0])

    @property
    def can_render(self) -> bool:
        """Whether the ray tracer is installed and renders all inputs."""
        try:
            from tools.rooms.rendering.tracer import require_tracer

            require_tracer()
        except (ImportError, RuntimeError):
            return False
        return all(
            m.data_folder in _RENDERED and (not m.is_labels or m.num_classes == len(NYU40_CLASSES))
            for m in self.inputs
        )

    def get(self, scene_id: object) -> Scene:
        """Return a scene.

        Raises:
            UserError: It is unknown, no longer kept, or cannot be rendered.
        """
        with self._lock:
            scene = self._kept.get(str(scene_id))
            if scene is not None:
                self._kept.move_to_end(scene.id)
                return scene
        name = str(scene_id)
        if name in self._examples:
            return self._keep(self._read(name))
        if name.startswith(ROOM) and self.can_render:
            return self._keep(self._render(name))
        if name.startswith(UPLOAD):
            raise UserError("This upload is no longer on the server. Choose the file again.")
        raise UserError(f"There is no image “{name[:80]}” here. Choose one of the examples.")

    def upload(self, path: Path, modality: str, onto: str) -> Scene:
        """Read an uploaded file and add it to an upload.

        Args:
            path: The file.
            modality: What it holds.
            onto: Id of the upload that it belongs to; any other id starts a new one.

        Raises:
            UserError: The file is invalid or does not fit the other files.
        """
        m = {m.name: m for m in self.inputs}.get(modality)
        if m is None:
            raise UserError(f"No model here has an input “{modality[:80]}”.")
        pixels = {m.name: read_upload(path, m, self.patch_size)}
        files = {m.name: path.name}
        if onto.startswith(UPLOAD):
            base = self.get(onto)
            pixels, files = {**base.pixels, **pixels}, {**base.files, **files}
        check_one_view(pixels, files)
        return self.add(pixels, files)

    def add(self, pixels: Mapping[str, Pixels], files: Mapping[str, str]) -> Scene:
        """Keep images as an upload; ``files`` are their names."""
        digest = hashlib.sha256()
        for name in sorted(pixels):
            digest.update(f"{name} {files.get(name)}".encode())
            digest.update(np.ascontiguousarray(pixels[name]).tobytes())
        title = next(iter(files.values()))
        key = UPLOAD + digest.hexdigest()[:16]
        return self._keep(self._scene(key, title, pixels, files))

    def _scene(
        self,
        scene_id: str,
        title: str,
        pixels: Mapping[str, Pixels],
        files: Mapping[str, str],
        metric: frozenset[str] = frozenset(),
    ) -> Scene:
        """A scene with the views of the pre-trained model."""
        spec = self.spec
        seen = spec is not None and any(m.name in pixels for m in spec.inputs)
        views = crop(pixels, spec) if seen and spec is not None else {}
        read_as = {m.name: m for m in self.inputs if m.name in pixels}
        small = {
            name: shrink(p, read_as[name], MAX_SIDE) if max(size_of(p)) > MAX_SIDE else p
            for name, p in pixels.items()
        }
        return Scene(scene_id, title, pixels, files, read_as, metric, views, small)

    def _read(self, name: str) -> Scene:
        """Read an example."""
        paths = self._examples[name]
        pixels = {
            m.name: read_upload(paths[m.name], m, self.patch_size)
            for m in self.inputs
            if m.name in paths
        }
        files = {key: path.name for key, path in paths.items()}
        check_one_view(pixels, files)
        return self._scene(name, title_of(name), pixels, files, self.metric)

    def _render(self, name: str) -> Scene:
        """Render a room of the validation split; deterministic."""
        from tools.rooms.sample import RenderError, render_room
        from tools.rooms.sample_files import aligned_images

        digits = name.removeprefix(ROOM)
        if not digits.isdecimal() or int(digits) >= MAX_NUMBER:
            raise UserError(f"Rooms are numbered from 0 to {MAX_NUMBER - 1}.")
        number = int(digits)
        side = SIDE if self.spec is None else max(SIDE, *as_size(self.spec.image_size))
        try:
            with self._rendering:
                sample = render_room(number, "val", number % len(ROOM_TYPES), side)
        except RenderError as err:
            raise UserError(f"Room {number} has no acceptable view. Try another number.") from err
        images = aligned_images(sample)
        pixels: dict[str, Pixels] = {m.name: images[m.data_folder] for m in self.inputs}
        metric = frozenset(m.name for m in self.inputs if m.data_folder == "depth")
        title = f"{sample.room_type.replace('_', ' ')} {number}"
        return self._scene(name, title, pixels, {}, metric)

    def _keep(self, scene: Scene) -> Scene:
        with self._lock:
            self._kept[scene.id] = scene
            while len(self._kept) > 1 and self._size() > MAX_SCENE_BYTES:
                self._kept.popitem(last=False)
        return scene

    def _size(self) -> int:
        return sum(scene.num_bytes for scene in self._kept.values())


def title_of(stem: str) -> str:
    """Title of an example: its folder's name, or its own."""
    kind, _, name = stem.rpartition("/")
    return (kind or name).rpartition("/")[2].replace("_", " ")


def _channels_last(array: Array, modality: Modality) -> Array:
    """``(C, h, w)`` -> ``(h, w, C)``, or ``(h, w)`` of one channel."""
    if modality.is_labels:
        return array
    last = np.ascontiguousarray(array.transpose(1, 2, 0))
    return last[..., 0] if modality.num_channels == 1 else last
