"""TIFF and GeoTIFF files: one page with all channels, or one page per channel.

tifffile decodes (``pip install 'multimae[tiff]'``). Sizes are checked before anything is decoded;
overviews (reduced-resolution pages) and masks are not channels and are skipped.
"""

from __future__ import annotations

import io
import logging
import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multimae.images.arrays import array_pixels, is_lossy_webp, without_alpha
from multimae.images.pixels import (
    Array,
    Encoding,
    ImageError,
    Pixels,
    check_encoding,
    checked,
    exact_content,
)
from multimae.specs.modalities import Modality

MAX_PAGES = 4096
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_OLD_REDUCED = 2  # SubfileType
_NEW_SUBFILE, _SUBFILE, _ORIENTATION = 254, 255, 274
GDAL_NODATA = 42113
"""TIFF tag of GDAL's no-data value."""
_LERC_PARAMETERS = 50674
_INVERTED, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
_JPEG, _LERC, _WEBP = 7, 34887, 50001
# None, CCITT, LZW, JPEG, deflate, PackBits, LZMA, Zstandard, LERC, WebP.
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34887, 34925, 50000, 50001})
_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_TURNS: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


class TiffError(ValueError):
    """A file that cannot be read exactly; the message completes "the file ..."."""


@dataclass(frozen=True)
class Bands:
    """Stored values of a file, upright.

    Attributes:
        values: ``(H, W)`` or ``(H, W, C)``, as stored.
        bits: Of every value.
        colours: ``grey``, ``inverted`` (0 is white), ``rgb``, ``palette`` or ``cmyk``.
        palette: ``(3, N)`` colours of 16 bits of a palette image.
        has_alpha: Whether the last channel is opacity.
        no_data: GDAL's no-data value, if declared.
        lossy: Compression that changed values when they were encoded; else empty.
    """

    values: Array
    bits: int
    colours: str
    palette: Array | None
    has_alpha: bool
    no_data: float | None
    lossy: str


def read_tiff(data: bytes, source: object, modality: Modality, max_pixels: float) -> Pixels:
    """Decode a TIFF file and check that it holds what the modality declares.

    Args:
        data: The file.
        source: Its path, for messages.
        modality: What it should hold.
        max_pixels: Larger images are not decoded.

    Raises:
        ImageError: The file does not fit the modality or cannot be read exactly.
    """
    try:
        bands = read_bands(data, modality.file_channels, max_pixels)
        return _pixels(bands, source, modality)
    except TiffError as err:
        raise ImageError(f"{source}: modality '{modality.name}': the file {err}.") from err


def _pixels(bands: Bands, source: object, modality: Modality) -> Pixels:
    values, want = bands.values, modality.file_channels
    _check_no_data(bands, modality)
    check_encoding(Encoding(0, bool(bands.lossy)), bands.lossy, source, modality)
    if bands.has_alpha and values.shape[-1] != want:
        values = without_alpha(values, source, modality)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    is_smooth = not modality.is_labels and modality.interpolation != "nearest"
    is_byte = values.dtype == np.uint8
    if bands.colours == "inverted":
        if not (is_smooth and is_byte and modality.storage == "integer"):
            raise TiffError("stores 0 as white (WhiteIsZero). Store it with black as 0")
        values = np.uint8(2 ** min(bands.bits, 8) - 1) - values
    if bands.bits < 8:
        if bands.bits not in (1, 2, 4) or values.ndim > 2:
            raise TiffError(f"has {bands.bits} bits per channel. Store it with 8 or 16")
        if bands.palette is None:
            scaled = values.astype(np.uint8) * np.uint8(255 // (2**bands.bits - 1))
            return checked(Image.fromarray(scaled), source, modality, Encoding(bands.bits))
    if bands.palette is not None and (not modality.is_labels or modality.has_colour_labels):
        if not is_byte:
            raise TiffError("has a palette of more than 256 colours, which is not read")
        image = Image.fromarray(values)
        image.putpalette((bands.palette.T >> 8).astype(np.uint8).tobytes())
        return checked(image, source, modality)
    if bands.colours == "cmyk" and values.shape[-1] != want and modality.is_photo and is_byte:
        return checked(Image.frombuffer("CMYK", values.shape[1::-1], values), source, modality)
    if is_byte and values.ndim == 2 and want > 1:
        return checked(Image.fromarray(values), source, modality)
    return array_pixels(values, source, modality)


def gdal_no_data(source: Path | bytes) -> float | None:
    """GDAL's no-data value of a TIFF file, as its first page stores it; ``None`` without one."""
    from tifffile import TiffFile

    logging.getLogger("tifffile").disabled = True
    try:
        with TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            return _no_data(file.pages.first)
    except Exception:  # reading the pixels reports it
        return None


def is_plain(path: Path, modality: Modality) -> bool:
    """Whether GDAL's values of a TIFF file are those that :func:`read_tiff` returns.

    False for turned, inverted, converted or lossy images, and for several pages.
    """
    from tifffile import TiffFile

    logging.getLogger("tifffile").disabled = True
    with TiffFile(path) as file:
        page = file.pages.first
        bits = page.bitspersample
        ids = modality.is_labels and not modality.label_map  # a map may name colours
        colours = (_GREY, _RGB, *([_PALETTE] if ids else []))
        return (
            _tag(page, _ORIENTATION, 1) == 1
            and page.photometric in colours
            and (bits if isinstance(bits, int) else max(bits)) >= 8
            and page.compression in _COMPRESSIONS - {_LERC, _WEBP}
            and not (page.compression == _JPEG and exact_content(modality))
            and len(list(_channel_pages(file))) == 1
        )


def _check_no_data(bands: Bands, modality: Modality) -> None:
    """Refuse pixels that GDAL's tag declares empty, and the modality does not."""
    if bands.no_data is None or modality.label_map:
        return
    narrow = np.float16 if bands.values.dtype == np.float16 else np.float32
    with np.errstate(over="ignore"):
        empty = np.float64(narrow(bands.no_data))
        declared = None if modality.no_data is None else np.float64(narrow(modality.no_data))
    if declared is not None and np.array_equal(empty, declared, equal_nan=True):
        return
    found = np.isnan(bands.values) if math.isnan(empty) else bands.values == bands.no_data
    if modality.is_photo and found.ndim == 3:
        found = found[..., : modality.num_channels].all(axis=-1)  # single channels may have it
    if not found.any():
        return
    remedy = f"Set no_data: {bands.no_data:g} in the config's `modalities:` section"
    if modality.is_photo:
        remedy = "Crop the images"
    elif not modality.is_labels and modality.interpolation != "nearest":
        remedy += ", with interpolation: nearest"
    other = f", and the modality declares {declared:g}" if declared is not None else ""
    raise TiffError(
        f"declares {bands.no_data:g} empty (GDAL_NODATA), in {int(found.sum())} values{other}. "
        f"{remedy}, or remove the tag"
    )


def read_bands(data: bytes, num_channels: int, max_pixels: float) -> Bands:
    """Decode the channels of a TIFF file.

    Args:
        data: The file.
        num_channels: Number of pages of a file with one page per channel.
        max_pixels: Larger images are not decoded.

    Raises:
        TiffError: The file is damaged, too large or not supported, or tifffile is missing.
    """
    try:
        from tifffile import TiffFile
    except ImportError as err:
        raise TiffError("is a TIFF, which needs `pip install 'multimae[tiff]'`") from err
    _check_pages(data)
    logging.getLogger("tifffile").disabled = True  # what it only logs, is raised here or harmless
    try:
        with TiffFile(io.BytesIO(data)) as file:
            pages = list(_channel_pages(file))
            _check_layout(pages, num_channels, len(file.pages))
            for page in pages:
                _check_page(page, data, max_pixels)
            planes = [_decode(page) for page in pages]
            values = planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)
            lossy = next(filter(None, (_lossy_compression(page, data) for page in pages)), "")
            return _bands(pages[0], values, lossy, paged=len(pages) > 1)
    except TiffError:
        raise
    except Exception as err:  # tifffile raises many types, depending on what is damaged
        missing = "; `pip install 'multimae[tiff]'`" if "imagecodecs" in str(err) else ""
        reason = (str(err) or type(err).__name__).splitlines()[0]
        raise TiffError(f"cannot be decoded ({reason:.200}){missing}") from err


def count_pages(data: bytes) -> int:
    """Number of pages that hold channels.

    Raises:
        TiffError: The file is damaged, or tifffile is missing.
    """
    try:
        from tifffile import TiffFile
    except ImportError as err:
        raise TiffError("is a TIFF, which needs `pip install 'multimae[tiff]'`") from err
    _check_pages(data)
    logging.getLogger("tifffile").disabled = True
    try:
        with TiffFile(io.BytesIO(data)) as file:
            return sum(1 for _ in _channel_pages(file))
    except Exception as err:
        raise TiffError(f"cannot be decoded ({str(err) or type(err).__name__:.200})") from err


def _check_pages(data: bytes) -> None:
    """Follow the chain of pages; raise if it is broken, endless or too long."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    offset_format, count_format, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    count_size = struct.calcsize("<" + count_format)
    position, seen = (8 if big else 4), set[int]()
    try:
        while (offset := struct.unpack_from(order + offset_format, data, position)[0]) != 0:
            if offset in seen:
                raise TiffError("has pages in a loop: it is damaged")
            seen.add(offset)
            if len(seen) > MAX_PAGES:
                raise TiffError(f"has more than {MAX_PAGES} pages")
            tags = struct.unpack_from(order + count_format, data, offset)[0]
            position = offset + count_size + tags * entry
        if not seen:
            raise TiffError("has no page")
    except struct.error as err:
        raise TiffError("is cut off: a page lies outside it") from err


def _channel_pages(file: Any) -> Iterator[Any]:
    """Pages at full resolution that are not masks."""
    for page in file.pages:
        kind = _tag(page, _NEW_SUBFILE, 0)
        if not kind & (_REDUCED | _MASK) and _tag(page, _SUBFILE, 0) != _OLD_REDUCED:
            yield page


def _tag(page: Any, code: int, default: Any) -> Any:
    tag = page.tags.get(code)
    return default if tag is None else tag.value


def _check_layout(pages: list[Any], num_channels: int, in_file: int) -> None:
    if not pages:
        raise TiffError("has only overviews and masks")
    if len(pages) > 1 and len(pages) != num_channels:
        raise TiffError(
            f"has {len(pages)} pages. Set num_channels, or store all channels in one page or one "
            "page per channel"
        )
    first = pages[0]
    if len(pages) > 1 and any(
        (p.shape, p.dtype, p.photometric) != (first.shape, first.dtype, first.photometric)
        or p.samplesperpixel != 1
        for p in pages
    ):
        shapes = ", ".join(str(p.shape) for p in pages[:6])
        raise TiffError(f"has pages that are not grey and of one size and type: {shapes}")
    text = str(first.description)[:2000]
    hidden = re.search(r"^images=(\d+)", text, re.MULTILINE) if text[:7] == "ImageJ=" else None
    if (hidden and int(hidden[1]) > in_file) or ('"shape"' in text and '"truncated": true' in text):
        raise TiffError("hides further images behind its pages. Store one page per channel")


def _check_page(page: Any, data: bytes, max_pixels: float) -> None:
    """Refuse what would be decoded to too many pixels, or not exactly."""
    if page.imagewidth * page.imagelength > max_pixels:
        raise TiffError(
            f"is {page.imagelength} x {page.imagewidth}, more pixels than Pillow's limit against "
            f"decompression bombs ({max_pixels:.0f}). Store a smaller image"
        )
    if page.is_tiled and page.tilewidth * page.tilelength > max_pixels:
        raise TiffError("has tiles with too many pixels")
    if page.axes not in ("YX", "YXS", "SYX") or page.dtype is None:
        raise TiffError(f"has the layout {page.axes or 'none'}, type {page.dtype}: not an image")
    if page.compression not in _COMPRESSIONS:
        raise TiffError(f"has the compression {page.compression!r}, which is not read")
    known = (_INVERTED, _GREY, _RGB, _PALETTE, _CMYK)
    is_jpeg = page.compression == _JPEG
    if page.photometric not in known and not (is_jpeg and page.photometric == _YCBCR):
        raise TiffError(f"has the colours {page.photometric!r}, which are not read")
    if is_jpeg or page.compression == _LERC:
        _check_segments(page, data, _jpeg_pixels if is_jpeg else _lerc_pixels)
    if page.compression == _LERC and (_tag(page, _LERC_PARAMETERS, (0, 0))[1:] or (0,))[0]:
        raise TiffError("has LERC inside another compression, which is not read")


def _check_segments(page: Any, data: bytes, pixels_of: Callable[[bytes], int]) -> None:
    """Compare the pixels in strips or tiles with their declared size."""
    declared = (
        page.tilewidth * page.tilelength
        if page.is_tiled
        else page.imagewidth * (min(page.rowsperstrip, page.imagelength))
    )
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=False):
        if size and pixels_of(data[offset : offset + size]) > declared:
            raise TiffError("holds strips or tiles with more pixels than declared: it is damaged")


def _jpeg_pixels(segment: bytes) -> int:
    position = 2
    while position + 9 < len(segment) and segment[position] == 0xFF:
        if segment[position + 1] in _SOF:
            height, width = struct.unpack_from(">HH", segment, position + 5)
            return int(height * width)
        position += 2 + int.from_bytes(segment[position + 2 : position + 4], "big")
    return 0


def _lerc_pixels(segment: bytes) -> int:
    height, width, _ = _lerc_header(segment)
    return height * width


def _lerc_header(segment: bytes) -> tuple[int, int, bool]:
    """Height, width, and whether values may be off, of a LERC 2 blob.

    Raises:
        TiffError: An unknown version, or pixels without a value.
    """
    try:
        (version,) = struct.unpack_from("<i", segment, 6)
        if not segment.startswith(b"Lerc2 ") or not 1 <= version <= 6:
            raise TiffError("holds LERC data of an unknown version")
        start = 14 if version >= 3 else 10
        height, width = struct.unpack_from("<ii", segment, start)
        start += 8 + 4 * (version >= 4)  # number of values per pixel
        valid, _, _, kind = struct.unpack_from("<4i", segment, start)
        (error,) = struct.unpack_from("<d", segment, start + 16 + 8 * (version >= 6))
    except struct.error as err:
        raise TiffError("holds LERC data that is cut off") from err
    if valid != height * width:
        raise TiffError(
            f"has {height * width - valid} pixels without a value (LERC). Store another "
            "compression, and the value that marks them"
        )
    return int(height), int(width), error > (0.5 if kind < 6 else 0)


def _lossy_compression(page: Any, data: bytes) -> str:
    """Name of the compression of a page if it may have changed values, else empty."""
    segments = (
        data[offset : offset + size]
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=False)
        if size
    )
    if page.compression == _JPEG:
        return "JPEG"
    if page.compression == _LERC and any(_lerc_header(segment)[2] for segment in segments):
        return "LERC with an error"
    if page.compression == _WEBP and any(map(is_lossy_webp, segments)):
        return "WebP"
    return ""


def _decode(page: Any) -> Array:
    """Values of a page, ``(H, W)`` or ``(H, W, C)``."""
    end = page.parent.filehandle.size
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=False):
        if offset + size > end:
            raise TiffError("is cut off: pixels lie outside it")
    values: Array = page.asarray(maxworkers=1)
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    return values


def _bands(page: Any, values: Array, lossy: str, paged: bool) -> Bands:
    turn = _TURNS.get(_tag(page, _ORIENTATION, 1), _TURNS[1])
    extra: Sequence[int] = page.extrasamples if page.samplesperpixel > 1 else ()
    colours = {_INVERTED: "inverted", _PALETTE: "palette", _CMYK: "cmyk"}.get(
        page.photometric, "grey" if page.photometric == _GREY else "rgb"
    )
    bits = page.bitspersample
    if paged and colours == "palette":
        raise TiffError("has palettes in several pages")
    return Bands(
        np.ascontiguousarray(turn(values)),
        int(bits[0] if isinstance(bits, tuple) else bits),
        colours,
        page.colormap if colours == "palette" else None,
        bool(extra) and int(extra[-1]) in _ALPHA,
        _no_data(page),
        lossy,
    )


def _no_data(page: Any) -> float | None:
    """GDAL's no-data value in the type of the pixels; ``None`` if they cannot have it."""
    text, dtype = str(_tag(page, GDAL_NODATA, "")).strip("\0 "), page.dtype
    try:
        value = float(text)
    except ValueError:
        return None
    if dtype is None or dtype.kind not in "iu":
        with np.errstate(over="ignore"):
            return value if dtype is None else float(dtype.type(value))
    limits = np.iinfo(dtype)
    fits = math.isfinite(value) and limits.min <= value <= limits.max
    return value if fits and value == int(value) else None
