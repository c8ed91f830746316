"""Which files hold images, and who reads which: by extension, then by what the row declares.

Pictures (PNG, JPEG, WebP, BMP, TIFF) go to :mod:`multimae.images.files`; TIFF files with one page
per channel and ``.npy`` arrays are read here, for rows that no picture holds: many channels, 16-bit
colours, floats.
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

from multimae.images import files as images
from multimae.images.pixels import Array, ImageError, ImageLike, Pixels, array_pixels, size_of
from multimae.specs.modalities import Modality

ARRAYS = frozenset({".npy"})
_PAGED = frozenset({".tif", ".tiff"})
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"}) | _PAGED
SUFFIXES = PICTURES | ARRAYS
"""Extensions that have a reader, in lower case."""


def read(path: Path, modality: Modality, patch_size: int = 1, data: bytes | None = None) -> Pixels:
    """Read the pixels of one file, of every extension that has a reader.

    ``data`` is what the file holds, if it has been read.

    Raises:
        ImageError: No reader, an unreadable file, or one that does not hold what the row declares.
    """
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        return _large_enough(
            array_pixels(_array(path, modality, data), path, modality), path, modality, patch_size
        )
    if suffix in _PAGED and not modality.is_labels and modality.num_channels > 1:
        pages = _pages(path, modality, data)
        if pages is not None:
            pixels = array_pixels(pages, path, modality)
            return _large_enough(pixels, path, modality, patch_size)
    if suffix not in SUFFIXES:
        raise ImageError(no_reader(path, modality))
    return images.read(path, modality, patch_size, data)


def to_pixels(image: ImageLike, modality: Modality) -> Pixels:
    """Pixels of one image, wherever it comes from; as :func:`multimae.images.files.to_pixels`."""
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        known = path.suffix.lower() in SUFFIXES
        return read(path, modality) if known else images.read(path, modality)
    return images.to_pixels(image, modality)


def no_reader(path: Path, modality: Modality) -> str:
    """What to say about a file that nothing reads."""
    return (
        f"{path}: modality '{modality.name}': no reader for '{path.suffix}' files. Convert it to "
        f"one of {', '.join(sorted(SUFFIXES))} (.npy holds any number of channels, 8 or 16 bits, "
        "or floats)."
    )


def _array(path: Path, modality: Modality, data: bytes | None = None) -> Array:
    """An ``.npy`` file; never one that holds Python objects, which would run code."""
    try:
        if data is not None:
            return _mapped(data)
        # Mapped first: a file shorter than its header says is refused before memory is taken.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(mapped, np.ndarray):
            raise ValueError("an archive, not an array")
        return np.array(mapped)
    except (OSError, ValueError, EOFError) as err:
        raise ImageError(
            f"{path}: modality '{modality.name}' cannot be read ({err}). It must be an array of "
            "numbers, (H, W) or (H, W, C), as numpy.save writes it."
        ) from err


def _mapped(data: bytes) -> Array:
    """The array that the bytes of an ``.npy`` file hold, in their memory."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in headers:
        raise ValueError(f"format version {version}")
    shape, by_columns, dtype = headers[version](stream)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    values = np.frombuffer(data, dtype, math.prod(shape), stream.tell())
    array: Array = values.reshape(shape, order="F" if by_columns else "C").copy()
    return array


def _pages(path: Path, modality: Modality, data: bytes | None = None) -> Array | None:
    """Pages of a TIFF file as channels ``(H, W, C)``; ``None`` of a file with one page."""
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=("TIFF",)) as image:
            count = getattr(image, "n_frames", 1)
            if count == 1:
                return None
            if count != modality.num_channels:
                raise ImageError(
                    f"{path}: modality '{modality.name}' is declared with num_channels: "
                    f"{modality.num_channels}, but the file has {count} pages. Set num_channels, "
                    "or store one page per channel."
                )
            bands = []
            for page in range(count):
                image.seek(page)
                bands.append(np.asarray(image))
    except ImageError:
        raise
    except Exception as err:  # Pillow has none of its own: it depends on the first bad byte
        raise ImageError(
            f"{path}: modality '{modality.name}' cannot be read ({err}). Replace it, or remove the "
            "sample."
        ) from err
    if len({band.shape for band in bands}) > 1 or bands[0].ndim != 2:
        raise ImageError(
            f"{path}: modality '{modality.name}': the pages must be grey and of one size, one per "
            f"channel; they are {', '.join(str(band.shape) for band in bands)}."
        )
    return np.stack(bands, axis=-1)


def _large_enough(pixels: Pixels, path: Path, modality: Modality, patch_size: int) -> Pixels:
    height, width = size_of(pixels)
    side = max(1, patch_size // modality.stride)
    if min(height, width) < side:
        raise ImageError(
            f"{path}: modality '{modality.name}' is {height} x {width} pixels, smaller than one "
            f"patch ({side} x {side}). Remove the sample or store it larger."
        )
    return pixels
