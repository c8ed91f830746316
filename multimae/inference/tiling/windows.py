"""Boxes of the images of a sample, read one at a time and aligned with each other.

TIFF files are read by windows, ``.npy`` files through a memory map; others are decoded once. A box
is in pixels of the largest image; images of lower resolution are read in relative coordinates.
Shapes: C channels, H and W of an image, h and w of a box in the model.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multimae.images.arrays import array_pixels
from multimae.images.no_data_tags import TIFF_SUFFIXES
from multimae.images.pixels import (
    Array,
    ImageError,
    ImageLike,
    Pixels,
    check_same_view,
    size_of,
    storage_dtype,
)
from multimae.images.preprocess import statistics_of
from multimae.images.readers import to_pixels
from multimae.images.views import View, cut, nearest
from multimae.inference.tiling.rasters import Georeference, Mask, Raster, block_cache
from multimae.nn.tokens import Size
from multimae.specs.modalities import Modality

SAMPLED = 2**22
"""Pixels of an image from which statistics are computed."""
_BAND = 256


class _Source(ABC):
    """An image that is read by boxes of its own pixels.

    Attributes:
        shape: ``(H, W)``.
    """

    shape: Size
    georeference: Georeference | None = None

    @abstractmethod
    def read(self, top: int, left: int, height: int, width: int) -> tuple[Pixels, Mask | None]:
        """Stored pixels of a box, and where there are any (``None``: everywhere)."""

    def cache_bytes(self, rows: int) -> int:
        """Bytes of the decoded blocks that ``rows`` rows touch."""
        return 0

    def close(self) -> None:
        """Release files."""
        return


class _Decoded(_Source):
    """An image in memory."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels, self.shape = pixels, size_of(pixels)

    def read(self, top: int, left: int, height: int, width: int) -> tuple[Pixels, Mask | None]:
        if isinstance(self.pixels, Image.Image):
            return self.pixels.crop((left, top, left + width, top + height)), None
        return self.pixels[top : top + height, left : left + width], None


class _ArrayFile(_Source):
    """An array ``(H, W)`` or ``(H, W, C)`` in an ``.npy`` file."""

    def __init__(self, path: Path, modality: Modality) -> None:
        self.path, self.modality = path, modality
        shape = self._mapped().shape
        if len(shape) not in (2, 3):
            raise ImageError(
                f"{path}: modality '{modality.name}' is (H, W) or (H, W, C), got {shape}."
            )
        self.shape = (shape[0], shape[1])

    def _mapped(self) -> Array:
        """A new map: pages of an old one would stay in memory."""
        try:
            array: Array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as err:
            raise ImageError(
                f"{self.path}: modality '{self.modality.name}' cannot be read ({err})."
            ) from err
        return array

    def read(self, top: int, left: int, height: int, width: int) -> tuple[Pixels, Mask | None]:
        values = np.array(self._mapped()[top : top + height, left : left + width])
        return array_pixels(values, self.path, self.modality), None


class _RasterFile(_Source):
    """A TIFF file."""

    def __init__(self, raster: Raster) -> None:
        self.raster, self.shape = raster, raster.shape
        self.georeference = raster.georeference

    def read(self, top: int, left: int, height: int, width: int) -> tuple[Pixels, Mask | None]:
        values, mask = self.raster.read(top, left, height, width)
        m = self.raster.modality
        if mask is not None and not mask.all():
            values = values.copy()
            values[~mask] = _filler(m)
        return array_pixels(values, self.raster.path, m), mask

    def cache_bytes(self, rows: int) -> int:
        return self.raster.cache_bytes(rows)

    def close(self) -> None:
        self.raster.close()


def _filler(m: Modality) -> Any:
    """Stored value of pixels that a file declares empty; it only reaches resized neighbours."""
    if m.no_data is not None:
        return m.no_data
    if m.is_labels:
        return 0
    values = np.array(m.mean) * m.max_value
    return values if m.storage == "float" else np.rint(values).astype(storage_dtype(m))


def _open(image: ImageLike, m: Modality) -> _Source:
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        suffix = path.suffix.lower()
        if suffix == ".npy":
            return _ArrayFile(path, m)
        if suffix in TIFF_SUFFIXES and path.is_file():
            raster = Raster(path, m)
            if raster.fits:
                return _RasterFile(raster)
            raster.close()
    return _Decoded(to_pixels(image, m))


def _as_stored(pixels: Pixels, m: Modality) -> Tensor:
    """Pixels as :func:`multimae.images.views.cut` returns them at their size, without resizing."""
    array = np.asarray(pixels)
    if not m.is_labels:
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.array(array, order="C"))


class Scene:
    """The images of a sample; use it as a context.

    Attributes:
        modalities: Of the images.
        size: ``(H, W)`` of the largest image, whose pixels boxes count.
        georeference: Where the sample lies, if a file says so.
    """

    def __init__(self, images: Mapping[str, ImageLike], modalities: Sequence[Modality]) -> None:
        """Open the images.

        Args:
            images: File, Pillow image or array of stored values by modality.
            modalities: Their modalities.

        Raises:
            ImageError: One cannot be read, or they do not show the same view.
            UserError: A TIFF file, and rasterio is missing.
        """
        self.modalities = tuple(modalities)
        self._sources: dict[str, _Source] = {}
        self._stack = ExitStack()
        try:
            for m in self.modalities:
                self._sources[m.name] = _open(images[m.name], m)
            self._check(images)
        except BaseException:
            self.close()
            raise
        shapes = [source.shape for source in self._sources.values()]
        self.size: Size = max(shapes)
        found = [s.georeference for s in self._sources.values() if s.georeference]
        best = max(found, key=lambda g: g.size, default=None)
        self.georeference = best.resized(self.size) if best else None

    def _check(self, images: Mapping[str, ImageLike]) -> None:
        empty = {n: np.broadcast_to(np.uint8(0), s.shape) for n, s in self._sources.items()}
        paths = {
            name: image if isinstance(image, str | os.PathLike) else "image"
            for name, image in images.items()
        }
        check_same_view(empty, paths)
        placed = [(n, s.georeference) for n, s in self._sources.items() if s.georeference]
        for name, where in placed[1:]:
            (first, reference) = placed[0]
            problem = reference.problem(where)
            if problem:
                raise ImageError(
                    f"{paths[name]}: modality '{name}' does not lie where '{first}' of the same "
                    f"sample ({paths[first]}) does: {problem}. Warp it to the grid of the other."
                )

    def __enter__(self) -> Scene:
        """Return the scene."""
        self._stack.enter_context(self.cache(_BAND))
        return self

    def __exit__(self, *error: object) -> None:
        """Close all files."""
        self.close()

    def close(self) -> None:
        """Close all files."""
        self._stack.close()
        for source in self._sources.values():
            source.close()

    def cache(self, rows: int) -> Any:
        """Context in which the blocks under ``rows`` rows are decoded once."""
        return block_cache(
            sum(
                s.cache_bytes(math.ceil(rows * s.shape[0] / self.size[0]))
                for s in self._sources.values()
            )
        )

    def read(self, m: Modality, box: View, out: Size) -> tuple[Tensor, Tensor | None]:
        """A box of one modality, as :func:`multimae.images.views.cut` cuts it from the full image.

        Args:
            m: Modality.
            box: Box in pixels of :attr:`size`.
            out: ``(h, w)`` of the result.

        Returns:
            Stored values, ``(C, h, w)`` or ids ``(h, w)``, and bool ``(h, w)``, where there are
            any; ``None``: everywhere.

        Raises:
            ImageError: The file is damaged or does not fit its modality.
        """
        source = self._sources[m.name]
        rows = _Span.of(box.top, box.height, self.size[0], source.shape[0])
        columns = _Span.of(box.left, box.width, self.size[1], source.shape[1])
        pixels, mask = source.read(rows.first, columns.first, rows.count, columns.count)
        inner = View(
            (rows.full, columns.full), rows.start, columns.start, rows.length, columns.length
        )
        is_exact = (rows.count, columns.count) == out and source.shape == self.size
        values = _as_stored(pixels, m) if is_exact else cut(pixels, m, inner, out)
        if mask is None:
            return values, None
        return values, torch.from_numpy(np.ascontiguousarray(nearest(mask, inner, out)))

    def reduced(self, m: Modality, every: int) -> Pixels:
        """A modality at ``1 / every`` of the full resolution."""
        (height, width), parts = self.size, []
        for top in range(0, height, every * max(1, _BAND // every)):
            rows = min(every * max(1, _BAND // every), height - top)
            box = View(self.size, top, 0, rows, width)
            parts.append(self.read(m, box, (-(-rows // every), -(-width // every)))[0])
        if m.is_labels:
            return torch.cat(parts).numpy()
        array: Array = torch.cat(parts, 1).permute(1, 2, 0).numpy()
        return np.ascontiguousarray(array[..., 0] if m.num_channels == 1 else array)

    def statistics(
        self, m: Modality, mask: Modality | None = None, threshold: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Mean and deviation that ``robust`` normalization uses for all boxes, of shape (1, ...).

        Of all pixels of images up to :data:`SAMPLED` pixels, else of every n-th row and column.

        Args:
            m: Modality, at its resolution in the model.
            mask: Modality of the map of valid pixels.
            threshold: Valid pixels exceed it.
        """
        height, width = self.size
        side = -(-width // m.stride)
        every = max(1, math.ceil(math.sqrt(height * width / m.stride**2 / SAMPLED)))
        values, valid, everywhere = [], [], True
        band = math.lcm(every * m.stride, m.stride) * max(1, _BAND // (every * m.stride))
        for top in range(0, height, band):
            rows = min(band, height - top)
            box, out = View(self.size, top, 0, rows, width), (-(-rows // m.stride), side)
            part, has_value = self.read(m, box, out)
            counted = torch.ones(out, dtype=torch.bool) if has_value is None else has_value
            if mask is not None and m.robust_pixels == "valid":
                counted = counted & (self.read(mask, box, out)[0][0] > threshold)
            everywhere &= bool(counted.all())
            values.append(part[..., ::every, ::every])
            valid.append(counted[::every, ::every])
        known = None if everywhere else torch.cat(valid)[None, None]
        return statistics_of(torch.cat(values, -2)[None], m, known)


class _Span:
    """Stored pixels that cover an interval, and the interval inside them, in exact integers."""

    def __init__(self, first: int, count: int, full: int, start: int, length: int) -> None:
        self.first, self.count = first, count
        self.full, self.start, self.length = full, start, length

    @classmethod
    def of(cls, start: int, length: int, full: int, stored: int) -> _Span:
        """``start`` and ``length`` in an axis of ``full`` pixels that is stored with ``stored``."""
        factor = math.gcd(full, stored)
        full, stored = full // factor, stored // factor
        first = start * stored // full
        last = -(-(start + length) * stored // full)
        return cls(
            first, last - first, (last - first) * full, start * stored - first * full,
            length * stored,
        )  # fmt: skip
