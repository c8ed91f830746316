"""From a file (path or bytes), Pillow image or array to stored pixels.

:func:`read` picks a reader by the file's extension; :data:`SUFFIXES` lists them all. Every reader
returns pixels that :mod:`multimae.images.pixels` has checked against the modality.
:func:`read_fast` tries libjpeg-turbo (through simplejpeg) and libpng (through torchvision) first.
Each of them is compared with Pillow once per process and used only if it gives the same values.
For every file they cannot decode Pillow does, and Pillow's error is authoritative.
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from multimae.images.pixels import (
    Array,
    ImageError,
    ImageLike,
    Pixels,
    check_encoding,
    check_readable,
    checked,
    class_ids,
    encoding_of,
    exact_content,
    size_of,
    storage_dtype,
)
from multimae.specs.modalities import Modality

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "AVIF", "JPEG2000", "PPM", "TIFF")
"""Names of the picture formats that are read."""
MAX_FILE_BYTES = 4 * 2**30
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "AVIF", "JPEG2000")
_PILLOW_BLOCKS = 8


def read(path: Path, modality: Modality, patch_size: int = 1, data: bytes | None = None) -> Pixels:
    """Read the pixels of one file, upright.

    An EXIF orientation is applied to every modality, so a photograph and maps computed from its
    upright form agree; maps computed from the raw sensor order do not fit such photographs.

    Args:
        path: Image file.
        modality: What the file should hold.
        patch_size: Patch side in full-resolution pixels; smaller images are refused.
        data: Bytes of the file, if they have been read already.

    Returns:
        8-bit images to be interpolated: Pillow mode L or RGB (palettes resolved, alpha dropped).
        Otherwise an array of :func:`storage_dtype`, ``(H, W)`` or ``(H, W, C)``: values as stored,
        class ids as stored (of palette images, the index).

    Raises:
        ImageError: No reader, unreadable file, wrong channels or bit depth, class id out of range,
            or an image smaller than a patch; with path, modality and remedy.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ImageError(
            f"{path}: modality '{modality.name}': no reader for '{path.suffix}' files. Convert it "
            f"to one of {', '.join(sorted(SUFFIXES))} (.npy holds any number of channels, 8 or 16 "
            "bits, or floats)."
        )
    if data is None:
        data = read_bytes(path, modality)
    return _check_size(reader(path, modality, data), path, modality, patch_size)


def read_fast(path: str, modality: Modality, patch_size: int, data: bytes) -> Pixels:
    """Read the same values as :func:`read`, faster; 8-bit images may be arrays, too."""
    refused = data.startswith(_JPEG) and bool(exact_content(modality))
    array = None if refused else decode_fast(data)
    if array is None:
        return read(Path(path), modality, patch_size, data)
    return check_pixels(array, path, modality, patch_size)


def read_bytes(path: str | Path, modality: Modality) -> bytes:
    """Read a regular file; raise an ImageError that names path and modality if that fails.

    FIFOs and devices are refused before they are opened, which might wait or never end.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(
                f"{path}: modality '{modality.name}' is not a regular file. Remove it, or replace "
                "it by an image."
            )
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(
                f"{path}: modality '{modality.name}' is a file of {status.st_size} bytes; at most "
                f"{MAX_FILE_BYTES} are read. Store a smaller image."
            )
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as err:
        raise unreadable(path, modality, err) from err


def to_pixels(image: ImageLike, modality: Modality) -> Pixels:
    """Convert an image from any source to stored pixels.

    Args:
        image: Path, Pillow image, or array of stored values. A path without a known extension is
            read as a picture.
        modality: What the image should hold.

    Raises:
        ImageError: It does not fit the modality, or the file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if path.suffix.lower() in SUFFIXES:
            return read(path, modality)
        return _read_picture(path, modality, read_bytes(path, modality))
    check_readable(modality)
    if isinstance(image, Image.Image):
        encoding = encoding_of(image)
        return checked(ImageOps.exif_transpose(image), "image", modality, encoding)
    from multimae.images.arrays import array_pixels

    return array_pixels(np.asarray(image), "array", modality)


def check_pixels(array: Array, source: object, modality: Modality, patch_size: int = 1) -> Pixels:
    """Check decoded values as :func:`read` checks a file.

    Args:
        array: Values of a Pillow image of mode L (uint8 ``(H, W)``), I;16 (uint16 ``(H, W)``) or
            RGB (uint8 ``(H, W, 3)``), upright.
        source: The file, for messages.
        modality: What the file should hold.
        patch_size: Patch side in full-resolution pixels; smaller images are refused.

    Raises:
        ImageError: As for :func:`read`.
    """
    _check_size(array, source, modality, patch_size)
    if modality.is_labels and array.ndim == 2:
        return class_ids(array, source, modality)
    dtype = storage_dtype(modality)
    channels = 1 if array.ndim == 2 else array.shape[2]
    fits = not modality.is_labels and channels == modality.num_channels
    if fits and np.can_cast(array.dtype, dtype):
        return array.astype(dtype, copy=False)
    return checked(Image.fromarray(array), source, modality)


def reuse_pillow_memory() -> None:
    """Let Pillow reuse the memory of images instead of requesting it for each of them."""
    core: Any = Image.core  # type: ignore[attr-defined]
    core.set_blocks_max(_PILLOW_BLOCKS)


def _check_size(pixels: Pixels, source: object, modality: Modality, patch_size: int) -> Pixels:
    (height, width), side = size_of(pixels), max(1, patch_size // modality.stride)
    if min(height, width) < side:
        raise ImageError(
            f"{source}: modality '{modality.name}' is {height} x {width} pixels, smaller than one "
            f"patch ({side} x {side}). Remove the sample or store it larger."
        )
    return pixels


def unreadable(path: object, modality: Modality, reason: object) -> ImageError:
    """The error for a file that cannot be decoded."""
    return ImageError(
        f"{path}: modality '{modality.name}' cannot be read ({reason}). Replace the file, or "
        "remove the sample."
    )


# One reader per format. Arguments: path (for messages), modality, bytes of the file.

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PORTABLE_MAPS = tuple(b"P%d" % i for i in range(1, 8))


def is_tiff(data: bytes) -> bool:
    """Whether a file is a TIFF, by its first bytes."""
    return data[:4] in _TIFF


def max_pixels() -> float:
    """Largest number of pixels of an image: Pillow's limit."""
    return math.inf if Image.MAX_IMAGE_PIXELS is None else Image.MAX_IMAGE_PIXELS


def _read_picture(path: Path, modality: Modality, data: bytes) -> Pixels:
    """Decode a picture, whatever its extension says, and turn it upright."""
    where = f"{path}: modality '{modality.name}'"
    if is_tiff(data):
        return _read_tiff(path, modality, data)
    if data[:2] in _PORTABLE_MAPS:
        from multimae.images.arrays import portable_map_pixels

        return portable_map_pixels(path, modality, data)
    limit = max_pixels()
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
            if image.width * image.height > limit:  # Pillow only warns until twice as many
                raise Image.DecompressionBombError
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise ValueError(f"{getattr(image, 'n_frames', 1)} frames; store one image")
            encoding, bits = encoding_of(image), 0
            if image.format in ("JPEG2000", "WEBP", "AVIF"):
                from multimae.images.arrays import encoding_of_data

                encoding, bits = encoding_of_data(data, image.format)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise ImageError(
            f"{where} has more pixels than Pillow's limit against decompression bombs "
            f"({limit:.0f}). Store a smaller image."
        ) from err
    except UnidentifiedImageError as err:
        why = f"is not one of {', '.join(FORMATS)}" if data else "is an empty file (0 bytes)"
        raise ImageError(f"{where} {why}. Replace it, or remove the sample.") from err
    except Exception as err:  # Pillow raises many types, depending on the first damaged byte
        raise unreadable(path, modality, err) from err
    if encoding.bits == 16 and image.format == "PNG":
        colours = _decode_wide_png(data)
        if colours is not None:
            from multimae.images.arrays import wide_colours

            return wide_colours(colours, path, modality)
    if bits > 8:  # Pillow shifts them to 16
        check_encoding(encoding, "JPEG 2000", path, modality, bits)
        return check_pixels(np.asarray(image) >> (16 - bits), path, modality)
    return checked(image, path, modality, encoding)


def _read_tiff(path: Path, modality: Modality, data: bytes) -> Pixels:
    from multimae.images.tiff import read_tiff  # loads tifffile

    return read_tiff(data, path, modality, max_pixels())


def _read_npy(path: Path, modality: Modality, data: bytes) -> Pixels:
    from multimae.images.arrays import npy_pixels

    return npy_pixels(path, modality, data)


_PICTURES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".avif", ".jp2", ".jpx", ".j2k"),
)
_READERS: dict[str, Callable[[Path, Modality, bytes], Pixels]] = {
    **dict.fromkeys(_PICTURES, _read_picture),
    ".npy": _read_npy,
}
SUFFIXES = frozenset(_READERS)
"""Extensions that have a reader, in lower case."""


# Fast decoders: simplejpeg for RGB JPEGs, torchvision for grey PNGs.

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 0x0112
# JPEG markers: sizes (SOF), where those end (SOS, EOI), Adobe's colour transform, metadata.
_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SOS, _EOI, _ADOBE, _APP1 = 0xDA, 0xD9, 0xEE, 0xE1
# PNG chunks and keywords after which pixels may be turned, transparent or one of several frames.
_PNG_MARKS = (b"eXIf", b"tRNS", b"XML:com.adobe.xmp", b"Raw profile type", b"acTL")


def decode_fast(data: bytes) -> Array | None:
    """Decode an upright RGB JPEG or grey PNG to the values that Pillow gives.

    Returns:
        ``(H, W, 3)`` or ``(H, W)``; ``None`` for all other files, damaged ones included.
    """
    if data.startswith(_PNG):
        return _decode_grey_png(data) if _is_grey_png(data) and _png_matches_pillow() else None
    return decode_jpeg(data)


def decode_jpeg(data: bytes) -> Array | None:
    """Values ``(H, W, 3)`` of an upright RGB JPEG as Pillow gives them; else ``None``."""
    return _decode_jpeg(data) if jpeg_size(data) and _jpeg_matches_pillow() else None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """``(H, W)`` of an upright JPEG with RGB colours that simplejpeg can decode, else ``None``."""
    size, pos, has_metadata = None, 2, False
    if not data.startswith(_JPEG) or not _has_simplejpeg():
        return None
    while pos + 9 < len(data) and data[pos] == 0xFF and data[pos + 1] not in (_SOS, _EOI):
        marker = data[pos + 1]
        if marker in _SOF:
            bits, channels = data[pos + 4], data[pos + 9]
            if size or bits != 8 or channels != 3:
                return None
            size = struct.unpack_from(">HH", data, pos + 5)
        if marker == _ADOBE:  # colours may be stored otherwise
            return None
        has_metadata |= marker == _APP1
        pos += 2 + int.from_bytes(data[pos + 2 : pos + 4], "big")
    if size is None or not min(size) or (has_metadata and not _is_upright(data)):
        return None
    small = size[0] * size[1] <= (Image.MAX_IMAGE_PIXELS or math.inf)
    return (size[0], size[1]) if small else None


@lru_cache
def _has_simplejpeg() -> bool:
    return find_spec("simplejpeg") is not None


def _is_upright(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return bool(image.getexif().get(_EXIF_ORIENTATION, 1) == 1)
    except Exception:  # Pillow reports the damage when it decodes the file
        return False


def _decode_jpeg(data: bytes) -> Array | None:
    import simplejpeg

    try:
        # Strict: what libjpeg only warns about goes to Pillow.
        return cast(Array, simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False))
    except ValueError:
        return None


def _is_grey_png(data: bytes) -> bool:
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    small = width * height <= (Image.MAX_IMAGE_PIXELS or math.inf)
    depth, colours, interlaced = (*data[24:26], data[28]) if len(data) > 57 else (0, 0, 0)
    plain = depth in (8, 16) and colours == 0 and not interlaced
    return small and plain and not any(mark in data for mark in _PNG_MARKS)


def _decode_png(data: bytes) -> Array | None:
    """Values ``(H, W, C)`` of a PNG by torchvision; ``None`` if it cannot decode the file."""
    import torch  # here, as processes that only read files need not load it
    from torchvision.io import decode_png

    try:
        image = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return None
    return cast(Array, image.permute(1, 2, 0).contiguous().numpy())


def _decode_grey_png(data: bytes) -> Array | None:
    values = _decode_png(data)
    return values[..., 0] if values is not None and values.shape[2] == 1 else None


def _decode_wide_png(data: bytes) -> Array | None:
    """Values ``(H, W, C)`` of a PNG with 16-bit colours; ``None`` if they are not exact."""
    if b"eXIf" in data or find_spec("torchvision") is None:
        return None
    values = _decode_png(data)
    exact = values is not None and values.dtype == np.uint16 and values.shape[2] > 1
    return values if exact else None


@lru_cache
def _jpeg_matches_pillow() -> bool:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (43, 37, 3), np.uint8))
    image = image.resize((86, 74))
    return all(
        _matches_pillow(_decode_jpeg, image, "JPEG", subsampling=s, progressive=p)
        for s in (0, 1, 2)
        for p in (False, True)
    )


@lru_cache
def _png_matches_pillow() -> bool:
    if find_spec("torchvision") is None:
        return False
    values = np.random.default_rng(0).integers(0, 65536, (43, 37), np.uint16)
    images = [Image.fromarray(v) for v in (values, values.astype(np.uint8))]
    return all(_matches_pillow(_decode_grey_png, image, "PNG") for image in images)


def _matches_pillow(
    decode: Callable[[bytes], Array | None], image: Image.Image, kind: str, **options: Any
) -> bool:
    """Whether ``decode`` and Pillow give the same values of an encoded image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    array, expected = decode(file.getvalue()), np.asarray(Image.open(file))
    return array is not None and array.dtype == expected.dtype and np.array_equal(array, expected)
