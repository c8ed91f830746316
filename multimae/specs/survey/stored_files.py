"""What the files of a folder hold, by a few evenly spread ones."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from multimae.images.arrays import parse_npy, read_portable_map
from multimae.images.folders import MultiModalFolder, spread_indices
from multimae.images.pixels import Array, ImageError, encoding_of
from multimae.images.readers import is_tiff, max_pixels, read, read_bytes
from multimae.specs.modalities import Modality

SAMPLES = 32
"""Files of a folder that are read."""
MAX_IDS, MAX_COLOURS = 65536, 254
_LABELS = Modality(
    "image", "labels", num_classes=MAX_IDS, loss="cross_entropy", interpolation="nearest"
)
_PIXELS = 8192  # of every file, for statistics
_BYTES = ("1", "L", "P")
_GREY = (*_BYTES, "I", "F", "I;16", "I;16B", "I;16L")
_CHANNELS = {"LA": 2, "RGB": 3, "RGBA": 4}
_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".avif")
_PORTABLE_MAPS = (b"P2", b"P3", b"P5", b"P6")


@dataclass(frozen=True)
class StoredImage:
    """Values of one file as stored.

    Attributes:
        values: ``(H, W)`` or ``(H, W, C)``.
        palette: Whether they are indices of a palette.
        lossy: Whether its compression changed values.
        no_data: GDAL's no-data value, if the file declares one.
    """

    values: Array
    palette: bool = False
    lossy: bool = False
    no_data: float | None = None

    @property
    def form(self) -> tuple[int, str]:
        """Channels, and ``palette`` or the type of the values."""
        channels = 1 if self.values.ndim == 2 else int(self.values.shape[2])
        return channels, "palette" if self.palette else str(self.values.dtype)


@dataclass
class StoredFiles:
    """Facts about the files of a folder.

    Attributes:
        folder: Name of the folder in the data root; ``.``: the root itself.
        suffix: Ending of the file names.
        count: Number of images.
        packed: Whether the folder is a pack.
        channels: Of most files.
        dtype: Type of the values of most files, or ``palette``.
        lossy: Whether one of these is compressed with loss.
        sizes: ``(H, W)`` of every file that was read.
        low: Smallest finite value.
        high: Largest finite value.
        bad: Values that are NaN or infinite.
        nan_only: Whether all of these are NaN.
        tags: No-data values that files declare.
        ids: (65536,) pixels by value, if the files have one channel of integers below 65536.
        flat: Share of pixels that equal their right neighbour.
        colours: 0xrrggbb of all files with 3 channels of 8 bits; ``None``: others, or too many.
        pixels: (N, C) evenly spread pixels of all files.
        suffixes: Extensions of the files that were read.
        opaque: Whether every value of the last of 4 channels is the largest one.
        forms: Files by channels and type.
        problems: Messages about files that could not be read.
    """

    folder: str
    count: int
    packed: bool = False
    suffix: str = ""
    channels: int = 0
    dtype: str = ""
    lossy: bool = False
    sizes: list[tuple[int, int]] = field(default_factory=list)
    low: float = np.inf
    high: float = -np.inf
    bad: int = 0
    nan_only: bool = True
    tags: set[float] = field(default_factory=set)
    ids: npt.NDArray[np.int64] | None = None
    flat: float = 0.0
    colours: set[int] | None = None
    pixels: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 1)))
    suffixes: Counter[str] = field(default_factory=Counter)
    opaque: bool = True
    forms: Counter[tuple[int, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def is_integer(self) -> bool:
        """Whether the values are integers."""
        return self.dtype == "palette" or np.dtype(self.dtype).kind in "bui"

    @property
    def found_ids(self) -> list[int]:
        """Values that occur, if these can be class ids."""
        return [] if self.ids is None else np.flatnonzero(self.ids).tolist()


def inspect_files(folder: MultiModalFolder, samples: int = SAMPLES) -> StoredFiles:
    """Read a few files of a folder of one modality.

    Files of another form than most are counted in ``forms`` only.
    """
    (m,) = folder.modalities
    facts = StoredFiles(m.data_folder, len(folder), suffix=m.suffix)
    images = list(_images(folder, m, samples, facts))
    if not images:
        return facts
    (facts.channels, facts.dtype), _ = facts.forms.most_common(1)[0]
    kept = [image for image in images if image.form == (facts.channels, facts.dtype)]
    _add_values(facts, kept)
    return facts


def _images(
    folder: MultiModalFolder, m: Modality, samples: int, facts: StoredFiles
) -> Iterator[StoredImage]:
    for index in spread_indices(len(folder), samples):
        path = folder.path(index, m)
        try:
            image = _read(folder, index, m)
        except (ImageError, ValueError, OSError) as err:
            facts.problems.append(str(err))
            continue
        facts.suffixes[PurePath(str(path)).suffix.lower()] += 1
        facts.sizes.append((int(image.values.shape[0]), int(image.values.shape[1])))
        facts.forms[image.form] += 1
        yield image


def _read(folder: MultiModalFolder, index: int, m: Modality) -> StoredImage:
    path = folder.path(index, m)
    try:
        data = folder.packed_original(index, m)
    except ImageError:  # packed as pixels only, if it is not damaged
        return _read_packed_pixels(folder, index, m)
    if data is None:
        data = read_bytes(str(path), m)
    return decode(Path(str(path)), data)


def _read_packed_pixels(folder: MultiModalFolder, index: int, m: Modality) -> StoredImage:
    """Read 8-bit grey, 16-bit or RGB pixels of a pack without the original files."""
    grey = replace(m, num_channels=1, interpolation="nearest")
    for spec in (grey, replace(_LABELS, name=m.name, folder=m.folder, suffix=m.suffix)):
        with suppress(ImageError):
            return StoredImage(np.asarray(folder.read(index, spec)))
    lossy = str(folder.path(index, m)).lower().endswith(_LOSSY_SUFFIXES)
    return StoredImage(np.asarray(folder.read(index, m)), lossy=lossy)


def decode(path: Path, data: bytes) -> StoredImage:
    """Decode a file without knowing its modality.

    Raises:
        ValueError: The file cannot be read.
    """
    if path.suffix.lower() == ".npy":
        return StoredImage(_squeezed(parse_npy(data)))
    if is_tiff(data):
        from multimae.images.tiff import count_pages, read_bands

        try:
            bands = read_bands(data, count_pages(data), max_pixels())
        except ValueError as err:
            raise ImageError(f"{path}: the file {err}.") from err
        return StoredImage(
            _squeezed(bands.values), bands.palette is not None, bool(bands.lossy), bands.no_data
        )
    if data[:2] in _PORTABLE_MAPS:
        return StoredImage(read_portable_map(data, max_pixels())[0])
    spec, mode, lossy = _picture(data)
    values = np.asarray(read(path, spec, data=data))
    if mode in _BYTES:
        values = values.astype(np.uint8)
    return StoredImage(values, mode == "P", lossy)


def _picture(data: bytes) -> tuple[Modality, str, bool]:
    """Modality that reads the values of a picture as stored, Pillow's mode, lossy or not."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode, encoding = image.mode, encoding_of(image)
    except (OSError, Image.DecompressionBombError):  # the reader says what is wrong
        return Modality("image"), "", False
    if mode not in _GREY:
        top = 65535.0 if encoding.bits == 16 else 255.0
        channels = _CHANNELS.get(mode, 3)
        return Modality("image", num_channels=channels, max_value=top), mode, encoding.lossy
    if encoding.lossy:
        return Modality("image", num_channels=1), mode, True
    if mode == "F":
        return Modality("image", num_channels=1, storage="float"), mode, False
    return _LABELS, mode, False


def _squeezed(values: Array) -> Array:
    return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values


def _add_values(facts: StoredFiles, images: list[StoredImage]) -> None:
    """Ranges, ids and pixels of files of one form."""
    spread, flat = [], []
    can_be_ids = facts.channels == 1 and not any(image.lossy for image in images)
    for image in images:
        values = image.values
        facts.lossy |= image.lossy
        if image.no_data is not None:
            facts.tags.add(image.no_data)
        finite = values
        if values.dtype.kind == "f":
            finite = values[np.isfinite(values)]
            facts.bad += values.size - finite.size
            facts.nan_only &= not np.isinf(values).any()
        if finite.size:
            facts.low = min(facts.low, float(finite.min()))
            facts.high = max(facts.high, float(finite.max()))
        if values.dtype.kind not in "bui" or not 0 <= facts.low <= facts.high < MAX_IDS:
            can_be_ids = False
        if can_be_ids:
            counts = np.bincount(values.reshape(-1).astype(np.int64), minlength=MAX_IDS)
            facts.ids = counts if facts.ids is None else facts.ids + counts
        flat.append(float((values[:, 1:] == values[:, :-1]).mean()) if values.shape[1] > 1 else 1)
        step = max(1, int(np.sqrt(values.shape[0] * values.shape[1] / _PIXELS)))
        spread.append(values[::step, ::step].reshape(-1, facts.channels).astype(np.float64))
        _add_colours(facts, values)
    facts.ids = facts.ids if can_be_ids else None
    if facts.colours is not None and len(facts.colours) > MAX_COLOURS:
        facts.colours = None
    facts.flat = float(np.mean(flat))
    facts.pixels = np.concatenate(spread)


def _add_colours(facts: StoredFiles, values: npt.NDArray[Any]) -> None:
    if facts.channels == 4 and values.dtype.kind == "u":
        facts.opaque &= bool((values[..., 3] == np.iinfo(values.dtype).max).all())
    if facts.channels in (3, 4) and values.dtype == np.uint8:
        known = set() if facts.colours is None else facts.colours
        if len(known) <= MAX_COLOURS:
            codes = values[..., :3].astype(np.int64) @ np.array([65536, 256, 1])
            facts.colours = known | set(np.unique(codes)[: MAX_COLOURS + 1].tolist())
