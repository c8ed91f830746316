"""Reader of Sweet Home 3D furniture archives (.sh3f).

Such a file is a zip with `PluginFurnitureCatalog.properties`, which lists pieces with their
name, category, size in centimetres and model, and the models themselves. OBJ models with
their MTL files and textures are read; pieces in other formats are skipped and counted.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.rooms.furniture.catalog import key_of, nyu_class
from tools.rooms.furniture.obj import ObjModel, parse_mtl, parse_obj
from tools.rooms.materials import patterns as tx
from tools.rooms.materials.palette import Kit
from tools.rooms.rendering.mesh import F32, Piece, RawMesh

MAX_TRIANGLES = 8000
MAX_BYTES = 1_200_000
TEXTURE_SIDE = 128
HELD_OUT = 4
CATALOGUE = "PluginFurnitureCatalog.properties"


class Sh3fError(ValueError):
    """The archive cannot be read."""


@dataclass(frozen=True)
class Entry:
    """One catalogue entry; sizes in metres, rotation float64 [3, 3] or None."""

    archive: str
    name: str
    key: str
    model: str
    width: float
    depth: float
    height: float
    rotation: tuple[float, ...] | None


@dataclass
class ModelLibrary:
    """The models of some archives, by catalogue key.

    Attributes:
        entries: Usable models by key, in a fixed order.
        skipped: Number of pieces left out by reason.
    """

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    _cache: dict[tuple[str, str], _Loaded | None] = field(default_factory=dict, repr=False)
    _zips: dict[str, zipfile.ZipFile] = field(default_factory=dict, repr=False)

    def pool(self, key: str, split: str) -> list[Entry]:
        """Return the models of a key that a split may use.

        Every fourth model of a key, starting with the second, is held out for val; the rest
        belongs to train. A key with a single model has none for val.
        """
        found = self.entries.get(key, [])
        held = [e for i, e in enumerate(found) if i % HELD_OUT == 1]
        return held if split == "val" else [e for e in found if e not in held]

    def draw(
        self, key: str, split: str, kit: Kit, room: tuple[float, float, float]
    ) -> Piece | None:
        """Return a random model of a key that fits into `room`, or None.

        Args:
            key: Catalogue key.
            split: "train" or "val".
            kit: Random choices and the material table that the model's materials go to.
            room: Largest width, depth and height, metres.
        """
        fit = [
            e
            for e in self.pool(key, split)
            if e.width <= room[0] and e.depth <= room[1] and e.height <= room[2]
        ]
        if not fit:
            return None
        first = int(kit.rng.integers(len(fit)))
        # A model that turns out unreadable or too heavy gives way to the next.
        for entry in fit[first:] + fit[:first]:
            model = self._load(entry)
            if model is not None:
                return _piece(entry, model, kit)
        return None

    def _load(self, entry: Entry) -> _Loaded | None:
        """Read a model, once per process."""
        at = (entry.archive, entry.model)
        if at not in self._cache:
            if entry.archive not in self._zips:
                self._zips[entry.archive] = zipfile.ZipFile(entry.archive)
            try:
                self._cache[at] = _read_model(self._zips[entry.archive], entry)
            except (KeyError, ValueError, OSError, IndexError, zipfile.BadZipFile):
                # A broken model in a third-party archive is no reason to stop.
                self._cache[at] = None
        return self._cache[at]


@dataclass
class _Loaded:
    """A model in the axes of a piece, with its materials."""

    tri: F32
    normal: F32
    uv: F32
    material: NDArray[np.int64]
    colors: list[NDArray[np.float64]]
    images: list[list[F32] | None]
    density: list[float]


def read_properties(text: str) -> dict[str, str]:
    """Parse a Java properties file into a dict."""
    out: dict[str, str] = {}
    for line in re.sub(r"\\\r?\n\s*", "", text).splitlines():
        line = line.strip()
        if not line or line[0] in "#!" or "=" not in line:
            continue
        key, value = line.split("=", 1)
        value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m.group(1), 16)), value)
        out[key.strip()] = value.strip()
    return out


def load_library(files: list[Path]) -> ModelLibrary:
    """Read the catalogues of some archives; models are read when first used.

    Args:
        files: .sh3f archives.

    Returns:
        The library.

    Raises:
        Sh3fError: A file is no readable archive, or holds no usable piece.
    """
    library = ModelLibrary()
    for path in files:
        try:
            with zipfile.ZipFile(path) as archive:
                raw = archive.read(CATALOGUE)
                sizes = {i.filename: i.file_size for i in archive.infolist()}
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise Sh3fError(f"{path}: not a readable .sh3f archive ({error})") from error
        props = read_properties(raw.decode("latin-1"))
        for number in sorted(int(k.split("#")[1]) for k in props if re.fullmatch(r"model#\d+", k)):
            _add_entry(library, str(path), props, number, sizes)
    if not library.entries:
        raise Sh3fError(f"no usable furniture in {', '.join(map(str, files))}")
    return library


def _add_entry(
    library: ModelLibrary, archive: str, props: dict[str, str], n: int, sizes: dict[str, int]
) -> None:
    """Add catalogue entry n to the library, or count why not."""

    def skip(reason: str) -> None:
        library.skipped[reason] = library.skipped.get(reason, 0) + 1

    name, model = props.get(f"name#{n}", ""), props[f"model#{n}"].lstrip("/")
    key = key_of(name, props.get(f"category#{n}", ""))
    if key is None:
        return skip("no matching class")
    if not model.lower().endswith(".obj"):
        return skip("format other than OBJ")
    if model not in sizes:
        return skip("model file missing")
    if sizes[model] > MAX_BYTES:
        return skip("too many triangles")
    try:
        size = [float(props[f"{axis}#{n}"]) / 100 for axis in ("width", "depth", "height")]
    except (KeyError, ValueError):
        return skip("size missing")
    if key.endswith("lamp"):
        key = "floor lamp" if size[2] > 0.95 else "table lamp"
    turn = props.get(f"modelRotation#{n}")
    rotation = tuple(float(v) for v in turn.split()) if turn else None
    entry = Entry(archive, name, key, model, size[0], size[1], size[2], rotation)
    library.entries.setdefault(key, []).append(entry)
    return None


def _read_model(archive: zipfile.ZipFile, entry: Entry) -> _Loaded | None:
    """Read and normalise one model; None if it has too many triangles or none."""
    obj: ObjModel = parse_obj(archive.read(entry.model).decode("latin-1"))
    count = len(obj.faces)
    if count == 0 or count > MAX_TRIANGLES:
        return None
    folder = posixpath.dirname(entry.model)
    mtl: dict[str, tuple[NDArray[np.float64], str | None, float]] = {}
    for lib in obj.libraries:
        path = posixpath.join(folder, lib)
        if path in archive.NameToInfo:
            mtl.update(parse_mtl(archive.read(path).decode("latin-1")))
    points, normals = obj.points, obj.normals
    if entry.rotation is not None and len(entry.rotation) == 9:
        turn = np.array(entry.rotation).reshape(3, 3)
        points, normals = points @ turn.T, normals @ turn.T
    # y up with the front towards +z becomes z up with the front towards +y.
    points = np.stack([-points[:, 0], points[:, 2], points[:, 1]], 1)
    normals = np.stack([-normals[:, 0], normals[:, 2], normals[:, 1]], 1)
    used = points[np.unique(obj.faces)]
    low, high = used.min(0), used.max(0)
    scale = np.array([entry.width, entry.depth, entry.height]) / np.maximum(high - low, 1e-6)
    points = (points - low) * scale - np.array([entry.width / 2, 0.0, 0.0])
    tri = points[obj.faces]
    face = np.cross(tri[:, 1] - tri[:, 0], tri[:, 2] - tri[:, 0])
    area = np.linalg.norm(face, axis=1)
    flat = np.repeat((face / np.maximum(area, 1e-12)[:, None])[:, None], 3, axis=1)
    smooth = normals[np.maximum(obj.normal_ids, 0)] / scale
    smooth /= np.maximum(np.linalg.norm(smooth, axis=-1, keepdims=True), 1e-12)
    bad = (obj.normal_ids < 0).any(1) | (np.abs((smooth * flat).sum(-1)) < 0.4).any(1)
    normal = np.where(bad[:, None, None], flat, smooth)
    opaque = np.array([mtl.get(n, (None, None, 1.0))[2] > 0.3 for n in obj.names] or [True])
    keep = (area > 1e-10) & opaque[obj.material]
    uv = obj.uvs[np.maximum(obj.uv_ids, 0)]
    loaded = _Loaded(
        tri[keep].astype(np.float32),
        normal[keep].astype(np.float32),
        uv[keep].astype(np.float32),
        obj.material[keep],
        [],
        [],
        [],
    )
    _read_materials(loaded, obj, mtl, archive, folder)
    return loaded if len(loaded.tri) else None


def _read_materials(
    loaded: _Loaded,
    obj: ObjModel,
    mtl: dict[str, tuple[NDArray[np.float64], str | None, float]],
    archive: zipfile.ZipFile,
    folder: str,
) -> None:
    """Fill in colours, textures and texture density of a model's materials."""
    for i, name in enumerate(obj.names):
        color, image, _ = mtl.get(name, (np.full(3, 0.6), None, 1.0))
        pyramid = None
        if image is not None:
            path = posixpath.normpath(posixpath.join(folder, image))
            if path in archive.NameToInfo:
                pyramid = _pyramid(archive.read(path))
        sel = loaded.material == i
        edge = np.linalg.norm(loaded.tri[sel, 1] - loaded.tri[sel, 0], axis=1).sum()
        tiles = np.linalg.norm(loaded.uv[sel, 1] - loaded.uv[sel, 0], axis=1).sum()
        loaded.density.append(float(tiles / max(float(edge), 1e-6)))
        # Pure black and white have no texture in any photograph.
        loaded.colors.append(np.clip(color, 0.06, 0.93) ** 2.2)
        loaded.images.append(pyramid)


def _pyramid(data: bytes) -> list[F32]:
    """Decode a texture into a pyramid of linear images."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image.resize((TEXTURE_SIDE, TEXTURE_SIDE), Image.Resampling.BOX)
    level: F32 = (np.asarray(image, np.float32) / 255) ** 2.2
    levels = [level]
    while level.shape[0] > 1:
        n = level.shape[0] // 2
        level = level.reshape(n, 2, n, 2, 3).mean((1, 3), dtype=np.float32)
        levels.append(level)
    return levels


def _piece(entry: Entry, model: _Loaded, kit: Kit) -> Piece:
    """Turn a loaded model into a piece, adding its materials to the room's table."""
    ids = []
    for color, pyramid, density in zip(model.colors, model.images, model.density, strict=True):
        if pyramid is None:
            ids.append(kit.mats.add(tx.SOLID, color))
        else:
            kit.mats.images.append(pyramid)
            params = (float(len(kit.mats.images) - 1), density)
            ids.append(kit.mats.add(tx.IMAGE, np.ones(3), params=params))
    material = np.array(ids, np.int32)[model.material]
    cls = nyu_class(entry.key)
    piece = Piece(cls, entry.width, entry.depth, entry.height)
    piece.raw.append((RawMesh(model.tri, model.normal, model.uv, material), cls))
    return piece
