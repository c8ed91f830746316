"""Check one file: bytes, format, pixel values."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from multimae.images.no_data_tags import no_data_tag_of
from multimae.images.pixels import Array, ImageError, Pixels, size_of, storage_dtype
from multimae.images.readers import FORMATS, check_pixels, read
from multimae.specs.modalities import Modality
from tools.doctor.files.file_listing import File
from tools.doctor.files.file_records import CheckedFile, FileRecord, is_scalar_map
from tools.doctor.files.histograms import Counts, counts_of, quantile, sums_of

_ORIENTATION = 0x0112
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_CONVERTED = frozenset({"CMYK", "YCbCr"})
_ALL_IDS = 65536


def check_file(file: File, key: str, modality: Modality, num_ids: int) -> CheckedFile:
    """Read, decode and check one file as training does; problems become findings.

    Args:
        file: The file.
        key: ``sub-folder/name`` of its sample.
        modality: What it should hold.
        num_ids: Number of valid class ids, for labels.
    """
    out = CheckedFile(modality, FileRecord(key, modality.name, file.path, 0))
    try:
        stored = file.read()
    except (OSError, ImageError) as err:
        reason = getattr(err, "strerror", None) or err
        out.note("error", "unreadable", f"cannot be read ({reason}). Replace it.")
        return out
    data = stored if isinstance(stored, bytes) else stored.tobytes()
    out.record.size = len(data)
    out.record.digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    if not data:
        text = "is an empty file (0 bytes). Replace it, or remove the sample."
        out.note("error", "empty-file", text)
        return out
    out.pixels = _read(file, stored, out)
    if out.pixels is not None:
        out.record.height, out.record.width = size_of(out.pixels)
        if isinstance(out.pixels, np.ndarray) and out.pixels.dtype.kind == "f":
            out.sums = sums_of(out.pixels, modality.no_data)
            out.record.levels = min(len(np.unique(out.pixels[np.isfinite(out.pixels)])), 256)
        else:
            out.counts = counts_of(out.pixels)
            check_values(out, num_ids)
    return out


def _read(file: File, stored: bytes | Array, out: CheckedFile) -> Pixels | None:
    """Pixels as training reads them, or ``None`` with a finding if it rejects the file."""
    modality = out.modality
    if modality.is_labels:  # ids out of range are counted later
        modality = dataclasses.replace(modality, num_classes=_ALL_IDS)
    void, tag = modality.no_data, None
    if modality.is_labels and void is not None and isinstance(stored, bytes):
        tag = no_data_tag_of(stored)  # empty pixels of label maps are void
    modality = modality if tag is None else dataclasses.replace(modality, no_data=tag)
    head = _inspect(file, stored, out)
    try:
        if isinstance(stored, bytes):
            pixels = read(Path(file.path), modality, 1, stored)
        else:
            pixels = check_pixels(stored, file.path, modality)
    except ImageError as err:
        text = str(err).removeprefix(f"{file.path}: ").removeprefix(f"{file.path} ")
        if not any(f.severity == "error" for f in out.findings):
            out.note("error", _code_of(text, head, modality), text)
        return None
    if not out.record.mode:
        array = np.asarray(pixels)
        out.record.mode = f"{array.dtype} x {1 if array.ndim == 2 else array.shape[2]}"
    if tag is not None and void is not None:
        pixels = np.where(np.asarray(pixels) == tag, np.uint16(void), np.asarray(pixels))
    if modality.is_labels and int(np.asarray(pixels).max()) < 256:
        return np.asarray(pixels, np.uint8)
    return pixels


def _inspect(file: File, stored: bytes | Array, out: CheckedFile) -> Image.Image | None:
    """Header of a picture; notes its format and orientation."""
    if not isinstance(stored, bytes) or file.path.lower().endswith(".npy"):
        return None
    try:
        with Image.open(io.BytesIO(stored), formats=FORMATS) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except (Image.DecompressionBombError, *_BROKEN):
        return None  # the reader reports it
    _check_format(image.format, image.mode, out)
    if orientation != 1:
        out.note(
            "warning",
            "exif-rotated",
            f"has EXIF orientation {orientation} and is rotated when read: maps made from the raw "
            "pixels do not fit it. Store the pixels upright, without the tag.",
        )
    return image


def _code_of(text: str, head: Image.Image | None, modality: Modality) -> str:
    """Kind of finding for the message of a reader."""
    if "class id" in text and "outside" in text:
        return "label-range"
    if "cannot be read" in text:
        return "corrupt"
    if head is None:
        return "unreadable"
    wide = head.mode.startswith("I") and storage_dtype(modality).itemsize == 1
    return "bit-depth" if wide or " bits per " in text else "colour-mode"


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
    counts = out.counts[0].copy()
    if out.modality.no_data is not None and int(out.modality.no_data) < len(counts):
        counts[int(out.modality.no_data)] = 0
    outside = num_ids + np.flatnonzero(counts[num_ids:])
    if len(outside):
        ids = ", ".join(map(str, outside[:_MAX_SHOWN]))
        more = ", ..." if len(outside) > _MAX_SHOWN else ""
        share = counts[num_ids:].sum() / out.counts[0].sum()
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
