"""GeoTIFF files by windows, with rasterio (``pip install 'multimae[geo]'``).

Shapes: C bands, H and W of the image, h and w of a window.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae.images.pixels import Array, ImageError
from multimae.images.tiff import is_plain
from multimae.nn.tokens import Size
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality

Mask = npt.NDArray[np.bool_]
BLOCK = 256
"""Side of the blocks of written files."""
_CACHE = 2**26  # least bytes of decoded blocks that GDAL keeps
_TOLERANCE = 1.0  # stored pixels that the outlines of two rasters may differ by


def _rasterio() -> Any:
    try:
        import rasterio
    except ImportError as err:
        raise UserError(
            "TIFF files are read and written by windows with rasterio: `pip install "
            "'multimae[geo]'`."
        ) from err
    return rasterio


@dataclass(frozen=True)
class Georeference:
    """Where an image lies.

    Attributes:
        size: ``(H, W)`` of the image.
        crs: Coordinate reference system; ``None`` if unknown.
        transform: Affine transform from pixels to coordinates.
        gcps: Ground control points and their system.
    """

    size: Size
    crs: Any
    transform: Any
    gcps: tuple[list[Any], Any]

    def resized(self, size: Size) -> Georeference:
        """Of the same image with other pixels; control points are kept for the same size only."""
        if size == self.size:
            return self
        scale = self.transform.scale(self.size[1] / size[1], self.size[0] / size[0])
        return Georeference(size, self.crs, self.transform * scale, ([], None))

    def problem(self, other: Georeference) -> str:
        """How the outline of ``other`` differs; empty if it does not."""
        if self.crs is not None and other.crs is not None and self.crs != other.crs:
            return f"its coordinate system is {other.crs}, not {self.crs}"
        if self.gcps[0] or other.gcps[0]:
            return ""
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            ours = self.transform * (column * self.size[1], row * self.size[0])
            theirs = other.transform * (column * other.size[1], row * other.size[0])
            pixel = max(
                math.hypot(t.a, t.d) + math.hypot(t.b, t.e)
                for t in (self.transform, other.transform)
            )
            if math.dist(ours, theirs) > _TOLERANCE * pixel:
                return f"a corner lies at {theirs}, not {ours}"
        return ""


class Raster:
    """A TIFF file that is read by windows.

    Attributes:
        shape: ``(H, W)``.
    """

    def __init__(self, path: Path, modality: Modality) -> None:
        """Open a file and read its header.

        Raises:
            ImageError: It cannot be read.
            UserError: rasterio is missing.
        """
        self.path, self.modality = path, modality
        self._file = open_raster(path)
        self.shape: Size = (self._file.height, self._file.width)
        want = 1 if modality.is_labels else modality.num_channels
        bands = list(range(1, self._file.count + 1))
        kinds = [kind.name for kind in self._file.colorinterp]
        self._alpha = bands[-1] if len(bands) == want + 1 and kinds[-1] == "alpha" else 0
        self._bands = bands[:want]
        self.fits = len(bands) - bool(self._alpha) == want and is_plain(path, modality)
        flags = [flag for band in self._file.mask_flag_enums[:want] for flag in band]
        self._masked = not self._alpha and any(flag.name != "all_valid" for flag in flags)

    @property
    def georeference(self) -> Georeference | None:
        """Where the image lies, if the file says so."""
        return _georeference(self._file)

    def cache_bytes(self, rows: int) -> int:
        """Bytes of the decoded blocks that ``rows`` rows touch."""
        height, _ = self._file.block_shapes[0]
        item = max(np.dtype(dtype).itemsize for dtype in self._file.dtypes)
        return int((rows + 2 * height) * self.shape[1] * self._file.count * item)

    def read(self, top: int, left: int, height: int, width: int) -> tuple[Array, Mask | None]:
        """Values ``(h, w)`` or ``(h, w, C)`` of a box, and where there are any.

        Raises:
            ImageError: The file is damaged.
        """
        rasterio = _rasterio()
        window = rasterio.windows.Window(left, top, width, height)
        try:
            values = self._file.read(self._bands, window=window)
            mask = None
            if self._alpha:
                mask = self._file.read(self._alpha, window=window) > 0
            elif self._masked:
                masks = self._file.read_masks(self._bands, window=window) > 0
                # A photo's black is a colour unless all of its channels are empty.
                mask = masks.any(axis=0) if self.modality.is_photo else masks.all(axis=0)
        except rasterio.errors.RasterioError as err:
            raise ImageError(
                f"{self.path}: modality '{self.modality.name}' cannot be read ({err})."
            ) from err
        array: Array = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
        return array, mask

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_raster(path: Path) -> Any:
    """Open a TIFF file to read.

    Raises:
        ImageError: It cannot be read.
        UserError: rasterio is missing.
    """
    rasterio = _rasterio()
    try:
        with _unreferenced(rasterio):
            return rasterio.open(path, driver="GTiff")
    except rasterio.errors.RasterioError as err:
        raise ImageError(f"{path}: cannot be read ({err}).") from err


def georeference_of(path: Path) -> Georeference | None:
    """Where a TIFF file lies; ``None`` if it does not say.

    Raises:
        ImageError: It cannot be read.
        UserError: rasterio is missing.
    """
    with open_raster(path) as file:
        return _georeference(file)


def _georeference(file: Any) -> Georeference | None:
    points, system = file.gcps
    if file.crs is None and file.transform.is_identity and not points:
        return None
    return Georeference((file.height, file.width), file.crs, file.transform, (points, system))


def block_cache(num_bytes: int) -> AbstractContextManager[Any]:
    """Context in which GDAL keeps at most about ``num_bytes`` of decoded blocks."""
    if "rasterio" not in sys.modules:
        return nullcontext()
    # Without this, GDAL keeps 5 % of the memory of the machine.
    context: AbstractContextManager[Any] = _rasterio().Env(GDAL_CACHEMAX=max(_CACHE, num_bytes))
    return context


class TiffRows:
    """A compressed, tiled GeoTIFF that is written row by row, atomically."""

    def __init__(
        self,
        path: Path,
        size: Size,
        dtype: npt.DTypeLike,
        *,
        channels: int = 1,
        no_data: float | None = None,
        palette: Array | None = None,
        georeference: Georeference | None = None,
    ) -> None:
        """Create the file, beside ``path``.

        Args:
            path: Final name.
            size: ``(H, W)``.
            dtype: Of the values.
            channels: Bands.
            no_data: Value of pixels without one.
            palette: ``(256, 3)`` colours of 8-bit ids.
            georeference: Where the image lies.

        Raises:
            UserError: rasterio is missing.
        """
        rasterio, kind = _rasterio(), np.dtype(dtype)
        self.path, self._height, self._top = path, size[0], 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        options: dict[str, Any] = {}
        if georeference is not None:
            where = georeference.resized(size)
            options = {"crs": where.crs, "transform": where.transform}
            if where.gcps[0]:
                options = {"gcps": where.gcps[0], "crs": where.gcps[1]}
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unreferenced(rasterio):
            self._file = rasterio.open(
                self._temporary, "w", driver="GTiff", height=size[0], width=size[1],
                count=channels, dtype=kind.name, nodata=no_data, tiled=True, blockxsize=BLOCK,
                blockysize=BLOCK, compress="deflate", predictor=3 if kind.kind == "f" else 2,
                interleave="pixel", BIGTIFF="IF_SAFER", zlevel=4, num_threads=2, **options,
            )  # fmt: skip
        if palette is not None:
            colours = {i: tuple(map(int, colour)) for i, colour in enumerate(palette)}
            self._file.write_colormap(1, colours)
        self._waiting: list[Array] = []

    def write(self, rows: Array) -> None:
        """Append ``(h, W)`` or ``(h, W, C)``; blocks are written once, when complete."""
        self._waiting.append(rows[..., None] if rows.ndim == 2 else rows)
        ready = sum(map(len, self._waiting))
        rest = 0 if self._top + ready == self._height else ready % BLOCK
        if ready > rest:
            values = np.concatenate(self._waiting)
            self._write(values[: ready - rest])
            self._waiting = [values[ready - rest :].copy()]

    def _write(self, values: Array) -> None:
        rasterio = _rasterio()
        window = rasterio.windows.Window(0, self._top, values.shape[1], len(values))
        self._file.write(np.moveaxis(values, -1, 0), window=window)
        self._top += len(values)

    def close(self, *, keep: bool = True) -> None:
        """Finish the file; delete it unless ``keep``."""
        try:
            self._file.close()
            if keep:
                with self._temporary.open("rb") as written:
                    os.fsync(written.fileno())
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


@contextmanager
def _unreferenced(rasterio: Any) -> Iterator[None]:
    """Accept files that do not say where they lie."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield
