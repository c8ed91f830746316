"""Guess the fields of a modality from its files; every value with the reason for it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from multimae.specs.modalities import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VOID,
    Modality,
    default_table,
    make_table,
)
from multimae.specs.survey.stored_files import StoredFiles

Role = Literal["image", "labels", "validity"]
UNITS = (
    (1e-3, "millimetres"),
    (1 / 512, "1/512 m"),
    (1 / 256, "1/256 m"),
    (1e-2, "centimetres"),
    (1e-4, "tenths of a millimetre"),
)
"""Metres per stored unit of integer depth maps, and its name."""
METRES = (1.0, "metres")
PLAUSIBLE_DEPTH = (0.4, 60.0)
"""Metres between which the median of a depth map lies."""
_ALIASES = {
    "photo": "rgb image images img imgs photo photos color colour jpegimages leftimg8bit",
    "depth_map": "depth depths depthmap depthmaps depth_map depth_maps depth_zbuffer",
    "label_map": "semseg mask masks label labels label_map label_maps seg segmentation "
    "segmentations annotation annotations gt gtfine ground_truth segmentationclass semantic",
    "normal_map": "normal normals surface_normals",
    "validity": "mask_valid",
}
KNOWN_FOLDERS = {word: content for content, words in _ALIASES.items() for word in words.split()}
"""Content by the name of a folder."""
_NAMES = {"photo": "rgb", "depth_map": "depth", "label_map": "semseg"}  # of published modalities
_SENTINELS = (-999.0, -9999.0, -32768.0, -99999.0, float(np.finfo(np.float32).min))
_MAX_CLASSES_UNNAMED = 64  # more ids in a folder of unknown name are measurements
_FLAT = 0.85  # share of equal neighbours in label maps


@dataclass
class Guess:
    """One folder as a modality.

    Attributes:
        name: Of the modality.
        role: ``image``, ``labels``, or ``validity`` (a mask of valid pixels).
        content: ``photo``, ``depth_map``, ``label_map``, ``normal_map`` or ``other``.
        files: Facts about the files.
        fields: Fields that differ from the default modality, with comments.
        notes: What a user has to decide or correct.
        unit: Metres per stored unit and its name, of depth.
        valid: Mean and standard deviation of stored values, per channel, without ``no_data``.
        class_names: By stored id.
        label_map: Stored ids or colours and their class ids, if these differ.
    """

    name: str
    role: Role
    content: str
    files: StoredFiles
    fields: dict[str, tuple[Any, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unit: tuple[float, str] | None = None
    valid: tuple[list[float], list[float]] = ((), ())  # type: ignore[assignment]
    class_names: tuple[str, ...] = ()
    label_map: dict[int | str, int] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        """Modality with the guessed fields.

        Raises:
            ValueError: They contradict each other.
        """
        table = make_table({self.name: {key: value for key, (value, _) in self.fields.items()}})
        return table[self.name]

    def ids(self) -> list[int]:
        """Class ids that occur, without void."""
        return [i for i in self.files.found_ids if i != VOID]


def guess_modality(
    files: StoredFiles, taken: Sequence[str] = (), class_names: Sequence[str] = ()
) -> Guess:
    """Guess what a folder holds.

    Args:
        files: Facts about its files.
        taken: Names of other modalities.
        class_names: By id, from ``classes.json``.
    """
    alias = KNOWN_FOLDERS.get(files.folder.lower(), "other")
    if alias == "validity" and set(files.found_ids) <= {0, 1, VOID}:
        return Guess(files.folder, "validity", alias, files)
    content = _content(files, alias)
    guess = Guess(_name(files, _NAMES.get(content, ""), taken), "image", content, files)
    _set_folder(guess)
    if content == "label_map":
        guess.role, guess.class_names = "labels", tuple(class_names)
        _add_labels(guess)
    elif content == "photo":
        _add_photo(guess)
    elif content == "depth_map":
        _add_depth(guess)
    else:
        _add_measurements(guess)
    return guess


def _content(files: StoredFiles, alias: str) -> str:
    """What the files hold, by the name of their folder and their values."""
    if _are_labels(files, alias):
        return "label_map"
    if alias == "normal_map":
        return alias
    is_grey = files.channels == 1 and files.dtype in ("uint8", "palette")
    if _is_photo(files) or (alias == "photo" and is_grey):
        return "photo"
    return alias if alias == "depth_map" else "other"


def depth_unit(median: float, integers: bool = True) -> tuple[float, str] | None:
    """Metres per stored unit of a depth map with this median, and its name, if one is plausible."""
    low, high = PLAUSIBLE_DEPTH
    units = UNITS if integers else (METRES, *UNITS)
    return next((unit for unit in units if low <= median * unit[0] <= high), None)


def _name(files: StoredFiles, wanted: str, taken: Sequence[str]) -> str:
    """Name of the modality: ``wanted`` unless it is taken, else from the folder."""
    if wanted and wanted not in taken:
        return wanted
    name = re.sub(r"\W", "_", files.folder).strip("_") or "image"
    name = name if name.isidentifier() else f"m_{name}"
    while name in taken:
        name += "_2"
    return name


def _set_folder(guess: Guess) -> None:
    folder = guess.files.folder
    if folder != guess.name:
        reason = "images lie in data_path itself" if folder == "." else "sub-folder of data_path"
        guess.fields["folder"] = (folder, reason)
    if guess.files.suffix:
        guess.fields["suffix"] = (guess.files.suffix, "ending of the names")


def _are_labels(files: StoredFiles, alias: str) -> bool:
    if files.colours and not files.lossy and files.channels == 3:
        few = len(files.colours) <= _MAX_CLASSES_UNNAMED or alias == "label_map"
        return few and files.flat >= _FLAT and alias not in ("photo", "normal_map")
    ids = files.found_ids
    if not ids or not files.is_integer or alias in ("photo", "depth_map", "normal_map"):
        return False
    if files.dtype == "palette" or alias in ("label_map", "validity"):
        return True
    return len(ids) <= _MAX_CLASSES_UNNAMED and files.flat >= _FLAT and ids[-1] <= VOID


def _is_photo(files: StoredFiles) -> bool:
    return files.dtype == "uint8" and (
        files.channels == 3 or (files.channels == 4 and files.opaque)
    )


def _add_labels(guess: Guess) -> None:
    """Fields of class ids, and what is wrong with them."""
    files, class_names = guess.files, guess.class_names
    ids = guess.ids() or [0]
    if guess.name not in default_table():
        guess.fields |= {
            "kind": ("labels", "class ids"),
            "loss": ("cross_entropy", "of class ids"),
            "interpolation": ("nearest", "ids must not be blended"),
            "stride": (4, "label maps enter the model at 1/4 resolution, as published"),
            "plot": ("labels", "drawn with a palette"),
        }
    where = f"of {len(files.sizes)} files"
    _add_label_map(guess)
    if guess.label_map:
        count = max(2, 1 + max(i for i in guess.label_map.values() if i != VOID))
        guess.fields["num_classes"] = (count, f"classes of the label map, {where}")
        reason = "stored colours" if files.colours else "stored ids"
        guess.fields["label_map"] = (guess.label_map, f"{reason}: class ids")
        return
    count, reason = max(2, ids[-1] + 1), f"largest id {where} + 1; ids found: {_few_ids(ids)}"
    if class_names and len(class_names) > ids[-1]:
        count, reason = len(class_names), "names in classes.json"
    guess.fields["num_classes"] = (count, reason)
    if VOID in files.found_ids and count <= VOID:
        guess.fields["no_data"] = (VOID, f"id {VOID} is void: in no loss")


def _add_label_map(guess: Guess) -> None:
    """Map colours, masks of 0 and 255, and ids with large gaps to ids from 0 on."""
    files, ids = guess.files, guess.ids()
    if files.colours:
        guess.label_map = {f"#{code:06x}": i for i, code in enumerate(sorted(files.colours))}
        guess.notes.append(
            f"{files.folder}: {len(files.colours)} colours became classes in label_map. Put them "
            f"in the order of your classes; {VOID} is void."
        )
    elif len(ids) == 1 and VOID in files.found_ids:
        guess.label_map = {ids[0]: 0, VOID: 1}
    elif not guess.class_names and len(ids) > 1 and ids[-1] + 1 > 2 * len(ids):
        guess.label_map = {stored: i for i, stored in enumerate(ids)}
        if VOID in files.found_ids:
            guess.label_map[VOID] = VOID
        guess.notes.append(
            f"{files.folder}: {len(ids)} ids between {ids[0]} and {ids[-1]} occur in "
            f"{len(files.sizes)} files. Training stops at an id that is not in label_map: add it."
        )


def _add_photo(guess: Guess) -> None:
    """Fields of 8-bit colours; the default rgb needs none."""
    files = guess.files
    if guess.name not in default_table():
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        guess.fields |= {
            "num_channels": (3, "photos"),
            "mean": (list(mean), "ImageNet's"),
            "std": (list(std), "ImageNet's"),
        }
    guess.valid = _moments(files.pixels)


def _add_depth(guess: Guess) -> None:
    """Fields of the default depth that the files contradict, and its unit."""
    files = guess.files
    if files.channels > 1:
        guess.fields["num_channels"] = (files.channels, "as stored")
    _add_storage(guess, default_max=65535.0)
    values = _valid_pixels(guess)
    guess.valid = _moments(values)
    positive = values[values > 0]
    if not positive.size:
        guess.notes.append(f"{files.folder}: no value above 0 in {len(files.sizes)} files")
    elif files.dtype not in ("uint8", "palette"):
        guess.unit = depth_unit(float(np.median(positive)), files.is_integer)


def _add_measurements(guess: Guess) -> None:
    """Fields of values that are neither photos, depth nor labels."""
    files, fields = guess.files, guess.fields
    channels, is_normal = files.channels, guess.content == "normal_map"
    fields["num_channels"] = (channels, "as stored")
    _add_storage(guess, default_max=255.0)
    empty = "no_data" in fields
    values = _valid_pixels(guess)
    guess.valid = mean, std = _moments(values)
    top = float(fields["max_value"][0]) if "max_value" in fields else 255.0
    if "storage" in fields:
        top = 1.0
    constant = [i for i, s in enumerate(std) if s < 1e-8 * max(1.0, abs(mean[i]))]
    if constant:
        guess.notes.append(
            f"{files.folder}: constant channels: {', '.join(map(str, constant))}. Drop them."
        )
    scale = [s if i not in constant else top for i, s in enumerate(std)]
    unit = "" if top == 1.0 else f", divided by {top:g}"
    source = f"of {len(files.sizes)} files{', without no_data' * empty}{unit}"
    fields["mean"] = ([_round(v / top) for v in mean], source)
    fields["std"] = ([_round(v / top) for v in scale], source)
    exact = empty or is_normal
    why = "no_data and directions must not be blended" if exact else "resized without overshoot"
    fields["interpolation"] = ("nearest" if exact else "bilinear", why)
    if is_normal and channels == 3:
        fields["hflip_negate"] = ([0], "a flip mirrors the x component of normals")
        fields["loss"] = ("l1", "sharper than mse for geometry")
        fields["plot"] = ("normals", "drawn as directions")
    elif channels < 3:
        fields["loss"] = ("l1", "robust to outliers of a sensor")
        fields["plot"] = ("scalar", "drawn with a colour map")


def _add_storage(guess: Guess, default_max: float) -> None:
    """``storage``, ``max_value`` and ``no_data``."""
    files, fields = guess.files, guess.fields
    wide = files.is_integer and (files.low < 0 or files.high > 65535)
    if not files.is_integer or wide:
        what = f"values from {files.low:.6g} to {files.high:.6g}"
        fields["storage"] = ("float", f"files hold {files.dtype}, {what}")
    else:
        top = 255.0 if files.dtype in ("uint8", "palette", "bool") else 65535.0
        if top != default_max:
            fields["max_value"] = (top, f"files have {8 if top < 256 else 16} bits")
    no_data, reason = _no_data(files)
    if no_data is not None:
        fields["no_data"] = (no_data, reason)


def _no_data(files: StoredFiles) -> tuple[float | None, str]:
    """Value of missing pixels, if the files have one, and how it was found."""
    if len(files.tags) == 1:
        return next(iter(files.tags)), "the files declare it (GDAL_NODATA)"
    if files.bad and files.nan_only:
        return math.nan, "pixels without a value are NaN"
    if files.low in _SENTINELS:
        return files.low, "pixels without a value, it seems: 0 in the input, in no loss"
    if files.ids is not None and files.channels == 1 and files.ids[0]:
        others = np.flatnonzero(files.ids[1:]) + 1
        total = int(files.ids.sum())
        middle = np.searchsorted(np.cumsum(files.ids[1:]), (total - files.ids[0]) / 2) + 1
        if len(others) and others[0] > 0.05 * middle and middle > 255:
            share = files.ids[0] / total
            return 0, f"0 in {share:.1%} of the pixels, and then nothing below {others[0]}"
    return None, ""


def _valid_pixels(guess: Guess) -> npt.NDArray[np.float64]:
    pixels = guess.files.pixels
    good = np.isfinite(pixels)
    if "no_data" in guess.fields:
        good &= pixels != guess.fields["no_data"][0]
    return pixels[good.all(axis=1)]


def _moments(values: npt.NDArray[np.float64]) -> tuple[list[float], list[float]]:
    if not len(values):
        return [0.0] * values.shape[1], [0.0] * values.shape[1]
    return values.mean(axis=0).tolist(), values.std(axis=0).tolist()


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _few_ids(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:8]))
    return f"{shown}, ... {ids[-1]} ({len(ids)})" if len(ids) > 8 else shown


def declared(guesses: Sequence[Guess]) -> Mapping[str, Mapping[str, tuple[Any, str]]]:
    """Fields to write for every modality that needs some."""
    return {g.name: g.fields for g in guesses if g.fields and g.role != "validity"}
