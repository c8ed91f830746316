"""One file: its bytes, its format and its pixels, and what is wrong with them by themselves."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from multimae.images.pixels import ImageError, Pixels, checked, storage_dtype
from multimae.images.readers import FORMATS, decode_jpeg
from multimae.specs.modalities import Modality
from tools.doctor.files.histograms import counts_of
from tools.doctor.files.records import Examined, FileRecord
from tools.doctor.files.values import check_values

_ORIENTATION = 0x0112
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_CONVERTED = frozenset({"CMYK", "YCbCr"})
_ONE_CHANNEL = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L"})


def examine(path: str, key: str, row: Modality, num_ids: int) -> Examined:
    """Read, decode and check one file; whatever is wrong becomes a finding.

    Args:
        path: Image file.
        key: ``sub-folder/name`` of its sample.
        row: What it should hold.
        num_ids: Valid class ids are below this, for labels.
    """
    out = Examined(row, FileRecord(key, row.name, path, 0))
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except OSError as err:
        out.note("error", "unreadable", f"cannot be read ({err.strerror}). Replace it.")
        return out
    out.record.size = len(data)
    out.record.digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    image = _decode(data, out)
    if image is None:
        return out
    out.record.width, out.record.height = image.size
    out.pixels = _pixels(image, out)
    if out.pixels is not None:
        out.counts = counts_of(out.pixels)
        check_values(out, num_ids)
    return out


def _decode(data: bytes, out: Examined) -> Image.Image | None:
    """The upright image; notes what its format tells."""
    if not data:
        text = "is an empty file (0 bytes). Replace it, or remove the sample."
        out.note("error", "empty-file", text)
        return None
    photo = decode_jpeg(data)
    if photo is not None:
        _check_format("JPEG", "RGB", out)
        return Image.fromarray(photo)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            orientation = image.getexif().get(_ORIENTATION, 1)
            _check_format(image.format, image.mode, out)
            if orientation != 1:
                ImageOps.exif_transpose(image, in_place=True)
            upright: Image.Image = image
    except Image.DecompressionBombError:
        out.note("error", "unreadable", "has more pixels than Pillow's limit. Store it smaller.")
        return None
    except UnidentifiedImageError:
        out.note("error", "unreadable", f"is not one of {', '.join(FORMATS)}. Replace it.")
        return None
    except _BROKEN as err:
        out.note("error", "corrupt", f"cannot be decoded ({err}). Replace it.")
        return None
    if orientation != 1:
        out.note(
            "warning",
            "exif-rotated",
            f"has EXIF orientation {orientation}: it is turned upright when read, so maps made "
            "from the unturned pixels do not fit it. Store the pixels upright, without the tag.",
        )
    return upright


def _check_format(stored: str | None, mode: str, out: Examined) -> None:
    """What the stored format and mode say, before any conversion."""
    row, out.record.mode = out.row, mode
    if stored == "JPEG" and not row.is_photo:
        text = "is a JPEG, which changes values at edges. Store it as PNG, from the original."
        out.note("error" if row.is_labels else "warning", "lossy", text)
    if mode in _CONVERTED and row.is_photo:
        text = (
            f"is stored as {mode}: its colours are converted without its profile and come "
            "out wrong. Convert it to sRGB."
        )
        out.note("warning", "colour-mode", text)


def _pixels(image: Image.Image, out: Examined) -> Pixels | None:
    """Pixels as training reads them, or ``None`` if it refuses the mode."""
    row = out.row
    if row.is_labels and image.mode in _ONE_CHANNEL:
        ids = np.asarray(image)
        low = int(ids.min())
        if low < 0 or int(ids.max()) > 65535:
            out.note("error", "label-range", f"has class ids {low}..{ids.max()}.")
            return None
        return ids.astype(np.uint16 if ids.dtype.itemsize > 1 else np.uint8, copy=False)
    try:
        return checked(image, "", row)
    except ImageError as err:
        text = str(err).removeprefix(": ")
        out.note("error", "bit-depth" if _is_wide(image, row) else "colour-mode", text)
        return None


def _is_wide(image: Image.Image, row: Modality) -> bool:
    """Whether a file has 16 bits where the row has 8."""
    return image.mode.startswith("I") and storage_dtype(row).itemsize == 1
