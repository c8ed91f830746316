"""Arrays of stored values: ``.npy`` files, portable maps, wide colours, and hidden headers."""

from __future__ import annotations

import io
import math
import re
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from multimae.images.pixels import (
    Array,
    Encoding,
    ImageError,
    Pixels,
    checked,
    class_ids,
    storage_dtype,
)
from multimae.images.readers import check_pixels, max_pixels, unreadable
from multimae.specs.modalities import Modality

_PNM_HEADER = re.compile(rb"(P[2356])" + rb"(?:\s|#[^\n]*\n)+(\d{1,9})" * 3 + rb"\s")
MAX_NPY_HEADER = 4096


def array_pixels(values: Array, source: object, modality: Modality) -> Pixels:
    """Check an array ``(H, W)`` or ``(H, W, C)`` of stored values against its modality.

    Raises:
        ImageError: It does not fit the modality.
    """
    where = f"{source}: modality '{modality.name}'"
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    channels = 1 if values.ndim == 2 else values.shape[-1]
    want = modality.file_channels
    if values.ndim not in (2, 3) or channels != want:
        shape = "(H, W)" if want == 1 else f"(H, W, {want})"
        raise ImageError(
            f"{where} is {shape}, got {values.shape}. Set num_channels in the config's "
            "`modalities:` section, or convert it."
        )
    if values.size == 0:
        raise ImageError(f"{where} is empty: {values.shape}")
    if modality.storage == "float":
        return _floats(values, source, modality)
    if not np.issubdtype(values.dtype, np.integer):
        from multimae.images.pixel_errors import not_integers

        raise not_integers(values.dtype, source, modality)
    if modality.is_labels:
        return class_ids(values, source, modality)
    dtype = storage_dtype(modality)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > np.iinfo(dtype).max:
        raise ImageError(
            f"{where} has values {low}..{high}, outside 0..{np.iinfo(dtype).max}. "
            f"Set max_value to the largest value (at most 65535), or declare storage: float."
        )
    values = np.ascontiguousarray(values, dtype=dtype)
    if dtype == np.uint8 and channels in (1, 3) and modality.interpolation != "nearest":
        return Image.fromarray(values)
    return values


def wide_colours(values: Array, source: object, modality: Modality) -> Pixels:
    """Check colours of 16 bits, ``(H, W, C)``; opaque alpha is dropped.

    Raises:
        ImageError: They do not fit the modality, or it holds class ids or 8-bit values.
    """
    if modality.is_labels or (modality.storage != "float" and modality.max_value <= 255):
        return checked(Image.new("RGB", (1, 1)), source, modality, Encoding(16))
    has_alpha = values.shape[2] in (2, 4)
    if has_alpha and modality.num_channels == values.shape[2] - 1:
        values = without_alpha(values, source, modality)
    return array_pixels(values, source, modality)


def without_alpha(values: Array, source: object, modality: Modality) -> Array:
    """Drop the last channel, opacity, of ``(H, W, C)``.

    Raises:
        ImageError: A pixel is not opaque.
    """
    alpha = values[..., -1]
    top = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1.0
    if (alpha != top).any():
        from multimae.images.pixel_errors import transparent

        raise transparent(source, modality, int((alpha != top).sum()))
    return values[..., :-1]


def _floats(values: Array, source: object, modality: Modality) -> Array:
    """Check values of ``storage: float``."""
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise ImageError(f"{source}: modality '{modality.name}' holds numbers, got {values.dtype}")
    stored = values
    with np.errstate(over="ignore"):  # beyond float32: infinite, and reported below
        values = np.ascontiguousarray(values, dtype=np.float32)
        if modality.no_data is not None and stored.dtype == np.float16:
            # float16 holds -9999 as -10000, and 1e20 as infinity.
            values = np.where(stored == np.float16(modality.no_data), modality.no_data, values)
            values = values.astype(np.float32, copy=False)
    if stored.dtype.kind in "iu" and stored.itemsize > 2 and (values != stored).any():
        raise ImageError(
            f"{source}: modality '{modality.name}' has integers up to {stored.max()}, which "
            "float32 rounds. Store them in a larger unit, or subtract an offset."
        )
    unusable = ~np.isfinite(values)
    if modality.no_data is not None and unusable.any():
        empty = np.isnan(values) if math.isnan(modality.no_data) else values == modality.no_data
        unusable &= ~empty
    if unusable.any():
        from multimae.images.pixel_errors import not_finite

        raise not_finite(values[unusable], source, modality)
    return values


def encoding_of_data(data: bytes, picture_format: str) -> tuple[Encoding, int]:
    """Read how a JPEG 2000, WebP or AVIF file stores its samples.

    JPEG 2000 counts as lossy: the reversible transform alone does not make a file lossless, as
    encoders reach a target size by dropping coding passes.

    Args:
        data: The file.
        picture_format: Its format.

    Returns:
        The encoding, and the bits of the values of a grey JPEG 2000 (0: unknown).

    Raises:
        ValueError: Signed samples, samples of more than 16 bits, or a damaged header.
    """
    if picture_format == "JPEG2000":
        bits, count = _jpeg2000_samples(data)
        is_wide_colour = bits > 8 and count > 1
        return Encoding(16 if is_wide_colour else 0, lossy=True), bits if count == 1 else 0
    if picture_format == "AVIF":
        found = data.find(b"av1C")
        is_wide = 0 <= found < len(data) - 6 and bool(data[found + 6] & 0x60)
        return Encoding(16 if is_wide else 0, lossy=True), 0
    return Encoding(0, lossy=is_lossy_webp(data)), 0


def _jpeg2000_samples(data: bytes) -> tuple[int, int]:
    """Bits and number of channels, from the SIZ marker (ISO/IEC 15444-1, A.5.1)."""
    start = data.find(b"\xff\x4f\xff\x51")
    try:
        (count,) = struct.unpack_from(">H", data, start + 40)
        depths = {data[start + 42 + 3 * i] for i in range(count)}
    except (struct.error, IndexError) as err:
        raise ValueError("damaged JPEG 2000 header") from err
    if start < 0 or not depths:
        raise ValueError("no JPEG 2000 codestream")
    bits = max(depth & 0x7F for depth in depths) + 1
    if any(depth & 0x80 for depth in depths) or bits > 16:
        raise ValueError(f"JPEG 2000 with signed samples or {bits} bits, which are not read")
    if len(depths) > 1 or bits < 8:
        raise ValueError("JPEG 2000 with channels of fewer than 8, or different bits")
    return bits, count


def is_lossy_webp(data: bytes) -> bool:
    """Whether a WebP file has a chunk of the lossy codec."""
    position = 12
    while position + 8 <= len(data):
        if data[position : position + 4] == b"VP8 ":
            return True
        (size,) = struct.unpack_from("<I", data, position + 4)
        position += 8 + size + size % 2
    return False


def read_portable_map(data: bytes, max_pixels: float) -> tuple[Array, int]:
    """Decode a PGM or PPM file.

    Returns:
        Stored values ``(H, W)`` or ``(H, W, 3)``, uint8 or uint16, and the declared largest value.

    Raises:
        ValueError: Not such a file, damaged, or too large.
    """
    found = _PNM_HEADER.match(data)
    if found is None:
        raise ValueError("not a grey or RGB portable map (P2, P3, P5 or P6)")
    width, height, top = (int(number) for number in found.groups()[1:])
    if not 0 < top < 65536 or not width * height:
        raise ValueError(f"{height} x {width} pixels of values up to {top}")
    if width * height > max_pixels:
        raise ValueError(f"more pixels than {max_pixels:.0f}")
    shape = (height, width, 3) if found[1] in (b"P3", b"P6") else (height, width)
    count, dtype = math.prod(shape), np.dtype(np.uint8 if top < 256 else ">u2")
    if found[1] in (b"P2", b"P3"):
        body = re.sub(rb"#[^\n]*", b"", data[found.end() :])
        if len(body) < 2 * count - 1:
            raise ValueError("it is cut off")
        numbers = np.array(body.split(maxsplit=count)[:count], dtype=np.int64)
    else:
        if len(data) - found.end() < count * dtype.itemsize:
            raise ValueError("it is cut off")
        numbers = np.frombuffer(data, dtype, count, found.end())
    if numbers.size != count or numbers.min() < 0 or numbers.max() > top:
        raise ValueError(f"values missing, or above the declared {top}")
    return numbers.reshape(shape).astype(np.uint8 if top < 256 else np.uint16), top


def portable_map_pixels(path: Path, modality: Modality, data: bytes) -> Pixels:
    """Read a PGM or PPM file, whose values Pillow would scale."""
    try:
        values, top = read_portable_map(data, max_pixels())
    except ValueError as err:
        raise unreadable(path, modality, err) from err
    is_plain = top in (255, 65535) or modality.is_labels or modality.storage == "float"
    if not is_plain and top != modality.max_value:
        raise ImageError(
            f"{path}: modality '{modality.name}': the file declares values up to {top}, and the "
            f"modality {modality.max_value:g}. Set max_value: {top}, or convert the file."
        )
    is_grey = values.dtype == np.uint8 and values.ndim == 2
    if values.ndim == 2 and (modality.is_labels or (is_grey and modality.num_channels == 3)):
        return check_pixels(values, path, modality)
    return array_pixels(values, path, modality)


def parse_npy(data: bytes) -> Array:
    """Array in the bytes of an ``.npy`` file.

    ``np.load`` would allocate what the header asks for; a view of ``data`` fails if it is shorter.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in headers:
        raise ValueError(f"format version {version}")
    length = int.from_bytes(data[8 : 10 if version == (1, 0) else 12], "little")
    if length > MAX_NPY_HEADER:
        raise ValueError(f"a header of {length} bytes")
    shape, fortran_order, dtype = headers[version](stream)
    if dtype.names or dtype.subdtype or not 1 <= len(shape) <= 3 or min(shape) < 0:
        raise ValueError(f"shape {shape}, type {dtype}")
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    values = np.frombuffer(data, dtype, math.prod(shape), stream.tell())
    array: Array = values.reshape(shape, order="F" if fortran_order else "C").copy()
    return array


def npy_pixels(path: Path, modality: Modality, data: bytes) -> Pixels:
    """Read an ``.npy`` file; one with Python objects is refused, as loading it would run code."""
    try:
        values = parse_npy(data)
    except (ValueError, EOFError) as err:
        raise ImageError(
            f"{path}: modality '{modality.name}' cannot be read ({err}). It must be an array of "
            "numbers, (H, W) or (H, W, C), as numpy.save writes it."
        ) from err
    return array_pixels(values, path, modality)
