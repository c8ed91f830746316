"""Check one file: bytes, format, pixel values."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from multimae.images.pixels import Array, ImageError, Pixels, checked, storage_dtype
from multimae.images.readers import FORMATS, decode_jpeg
from multimae.specs.modalities import Modality
from tools.doctor.files.histograms import Counts, counts_of, quantile
from tools.doctor.files.records import CheckedFile, FileRecord, is_scalar_map

_ORIENTATION = 0x0112
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_CONVERTED = frozenset({"CMYK", "YCbCr"})
_ONE_CHANNEL = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L"})


def check_file(path: str, key: str, modality: Modality, num_ids: int) -> CheckedFile:
    """Read, decode and check one file; problems become findings.

    Args:
        path: Image file.
        key: ``sub-folder/name`` of its sample.
        modality: What it should hold.
        num_ids: Number of valid class ids, for labels.
    """
    out = CheckedFile(modality, FileRecord(key, modality.name, path, 0))
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


def _decode(data: bytes, out: CheckedFile) -> Image.Image | None:
    """Decode to an upright image; check the format."""
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
            f"has EXIF orientation {orientation} and is rotated when read: maps made from the raw "
            "pixels do not fit it. Store the pixels upright, without the tag.",
        )
    return upright


def _check_format(stored: str | None, mode: str, out: CheckedFile) -> None:
    """Check the stored format and mode, before any conversion."""
    modality, out.record.mode = out.modality, mode
    if stored == "JPEG" and not modality.is_photo:
        text = "is a JPEG, which alters values at edges. Store the original values as PNG."
        out.note("error" if modality.is_labels else "warning", "lossy", text)
    if mode in _CONVERTED and modality.is_photo:
        text = (
            f"is stored as {mode} and is decoded without its colour profile, to wrong colours. "
            "Convert it to sRGB."
        )
        out.note("warning", "colour-mode", text)


def _pixels(image: Image.Image, out: CheckedFile) -> Pixels | None:
    """Pixels as training reads them, or ``None`` if it rejects the mode."""
    modality = out.modality
    if modality.is_labels and image.mode in _ONE_CHANNEL:
        ids = np.asarray(image)
        low = int(ids.min())
        if low < 0 or int(ids.max()) > 65535:
            out.note("error", "label-range", f"has class ids {low}..{ids.max()}.")
            return None
        return ids.astype(np.uint16 if ids.dtype.itemsize > 1 else np.uint8, copy=False)
    try:
        return checked(image, "", modality)
    except ImageError as err:
        text = str(err).removeprefix(": ")
        out.note("error", "bit-depth" if _is_wide(image, modality) else "colour-mode", text)
        return None


def _is_wide(image: Image.Image, modality: Modality) -> bool:
    """Whether a file has 16 bits where the modality has 8."""
    return image.mode.startswith("I") and storage_dtype(modality).itemsize == 1


# A photo whose mean and 99th percentile are below these shares of the range is black.
_DARK_MEAN, _DARK_TOP = 0.03, 0.12
# Interpolated labels: ids between those of both neighbours, as a share of all changes of id.
# Rendered labels have up to 0.03 of them, resized ones 0.36 or more.
_BLENDED, _BLENDED_ODDS, _MIN_CHANGES = 0.15, 2.0, 30
_MANY_ROWS = 200
_MAX_SHOWN = 5


def check_values(out: CheckedFile, num_ids: int) -> None:
    """Check the values of a file and fill in the statistics of its record."""
    out.record.levels = max(int(np.count_nonzero(c)) for c in out.counts)
    if out.modality.is_labels:
        _check_ids(out, num_ids)
    elif is_scalar_map(out.modality):
        _measure_scale(out)
    elif out.modality.is_photo:
        _check_dark(out)


def _check_ids(out: CheckedFile, num_ids: int) -> None:
    counts = out.counts[0]
    outside = num_ids + np.flatnonzero(counts[num_ids:])
    if len(outside):
        ids = ", ".join(map(str, outside[:_MAX_SHOWN]))
        more = ", ..." if len(outside) > _MAX_SHOWN else ""
        share = counts[num_ids:].sum() / counts.sum()
        text = (
            f"has class ids {ids}{more} outside 0..{num_ids - 1} in {share:.2%} of its pixels. "
            "Remap them, or set num_classes (and classes.json)."
        )
        out.note("error", "label-range", text)
    if isinstance(out.pixels, np.ndarray):
        share = blended_share(out.pixels)
        if share > _BLENDED:
            text = (
                f"has ids between both neighbours at {share:.0%} of its class boundaries: the "
                "labels were interpolated. Resize the originals with nearest neighbour."
            )
            out.note("error", "label-blended", text)


def blended_share(ids: Array) -> float:
    """Share of class boundaries that pass through an id between the two classes.

    Args:
        ids: ``(H, W)``.

    Returns:
        0 to 1; 0 if there are few boundaries, or if ids outside the two are as frequent (noise).
    """
    changes = between = outside = 0
    every = 1 + (ids.shape[0] > _MANY_ROWS)  # every other row suffices
    across = ids[::every]
    down = np.ascontiguousarray(ids[:, ::every])
    for before, middle, after in (
        (across[:, :-2], across[:, 1:-1], across[:, 2:]),
        (down[:-2], down[1:-1], down[2:]),
    ):
        at = before != after
        a, m, b = before[at], middle[at], after[at]
        low, high = np.minimum(a, b), np.maximum(a, b)
        changes += int((high - low >= 2).sum())
        between += int(((m > low) & (m < high)).sum())
        outside += int(((high - low >= 2) & ((m < low) | (m > high))).sum())
    if changes < _MIN_CHANGES or between < _BLENDED_ODDS * outside:
        return 0.0
    return between / changes


def valid_counts(counts: Counts, top: int) -> Counts:
    """Histogram without 0 and the largest storable value, which mark invalid pixels."""
    valid: Counts = counts.copy()
    valid[0] = 0
    valid[top:] = 0
    return valid


def _measure_scale(out: CheckedFile) -> None:
    valid = valid_counts(out.counts[0], int(np.iinfo(storage_dtype(out.modality)).max))
    median = quantile(valid, 0.5)
    if median > 0:
        out.record.scale = float(np.log10(median))
        out.record.step = int(np.gcd.reduce(np.flatnonzero(valid)))


def _check_dark(out: CheckedFile) -> None:
    top = out.modality.max_value
    mean = float(np.mean([c @ np.arange(len(c)) / c.sum() for c in out.counts]))
    if mean >= _DARK_MEAN * top or out.record.levels == 1:
        return
    if max(quantile(c, 0.99) for c in out.counts) < _DARK_TOP * top:
        text = f"is nearly black (mean {mean:.1f} of {top:.0f}). Remove the sample, or replace it."
        out.note("warning", "near-black", text)
