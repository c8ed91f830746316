"""Fourteen data faults for rooms; each changes files and returns the bad ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Fault = Callable[[Path, Path], list[Path]]


def files(root: Path, modality: str) -> list[Path]:
    return sorted((root / modality).glob("*/*"))


def change(path: Path, edit: Callable[[np.ndarray], np.ndarray]) -> list[Path]:
    with Image.open(path) as image:
        pixels = np.asarray(image)
    Image.fromarray(np.ascontiguousarray(edit(pixels))).save(path)
    return [path]


def missing(train: Path, val: Path) -> list[Path]:
    path = files(train, "depth")[3]
    path.unlink()
    return [path]


def swapped(train: Path, val: Path) -> list[Path]:
    """Two pairs: the depth maps of two samples, and of two others."""
    chosen = [files(train, "depth")[i] for i in (2, 9, 5, 14)]
    for a, b in (chosen[:2], chosen[2:]):
        first = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(first)
    return chosen


def flipped(train: Path, val: Path) -> list[Path]:
    return change(files(train, "depth")[6], lambda x: x[:, ::-1])


def eight_bit(train: Path, val: Path) -> list[Path]:
    return change(files(train, "depth")[1], lambda x: (x // 40).clip(0, 255).astype(np.uint8))


def other_unit(train: Path, val: Path) -> list[Path]:
    chosen = files(train, "depth")[4:13:4]
    for path in chosen:
        change(path, lambda x: (x.astype(np.int64) * 10).clip(0, 65535).astype(np.uint16))
    return chosen


def label_range(train: Path, val: Path) -> list[Path]:
    def edit(x: np.ndarray) -> np.ndarray:
        out = x.copy()
        out[5:9, 5:9] = 200
        return out

    return change(files(train, "semseg")[7], edit)


def blended_labels(train: Path, val: Path) -> list[Path]:
    path = files(train, "semseg")[8]
    with Image.open(path) as image:
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.NEAREST)
        half.resize(image.size, Image.Resampling.BILINEAR).save(path)
    return [path]


def truncated(train: Path, val: Path) -> list[Path]:
    path = files(train, "rgb")[10]
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return [path]


def zero_bytes(train: Path, val: Path) -> list[Path]:
    path = files(train, "semseg")[11]
    path.write_bytes(b"")
    return [path]


def cmyk(train: Path, val: Path) -> list[Path]:
    path = files(train, "rgb")[12]
    with Image.open(path) as image:
        image.convert("CMYK").save(path, quality=93)
    return [path]


def exif_rotated(train: Path, val: Path) -> list[Path]:
    path = files(train, "rgb")[13]
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.save(path, exif=exif, quality=93)
    return [path]


def empty_folder(train: Path, val: Path) -> list[Path]:
    path = train / "rgb" / "attic"
    path.mkdir()
    return [path]


def leaked(train: Path, val: Path) -> list[Path]:
    """A training image again in the validation set, under another name."""
    path = files(val, "rgb")[1]
    shutil.copyfile(files(train, "rgb")[0], path)
    return [path]


def constant(train: Path, val: Path) -> list[Path]:
    return change(files(train, "depth")[15], lambda x: np.full_like(x, 2000))


# Fault -> code of its finding.
FAULTS: dict[str, tuple[Fault, str]] = {
    "missing file": (missing, "missing-file"),
    "swapped pairs": (swapped, "swapped"),
    "flipped": (flipped, "flipped"),
    "8-bit depth": (eight_bit, "bit-depth"),
    "other unit": (other_unit, "unit"),
    "label out of range": (label_range, "label-range"),
    "interpolated labels": (blended_labels, "label-blended"),
    "truncated JPEG": (truncated, "corrupt"),
    "zero-byte PNG": (zero_bytes, "empty-file"),
    "CMYK JPEG": (cmyk, "colour-mode"),
    "EXIF-rotated": (exif_rotated, "exif-rotated"),
    "empty class folder": (empty_folder, "empty-folder"),
    "leaked": (leaked, "leak"),
    "constant depth": (constant, "constant"),
}
