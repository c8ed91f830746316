"""ADE20K (ADEChallengeData2016): 0 = void, 1..150, as published (Zhou et al. 2017)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from multimae.specs.errors import UserError, bullet_list
from tools.common.jobs import PRESENT, WRITTEN, Tally, run_jobs, summary
from tools.common.target_folder import ONE_FOLDER, Link, Target

CLASSES = 150
SPLITS = {"training": "train", "validation": "val"}
NAMES_FILE = "objectInfo150.txt"
UNLABELLED = "all void, skipped"
_PARTS = {"images": ".jpg", "annotations": ".png"}


def prepare_ade20k(source: Path, target: Target, link: Link = "hard", workers: int = 1) -> str:
    """Write ``{train,val}/{rgb,semseg}``.

    Args:
        source: ``ADEChallengeData2016``.
        target: Folder to write.
        link: How files are linked or copied.
        workers: Processes.

    Returns:
        The summary.

    Raises:
        UserError: Files are missing or invalid.
        OSError: A file cannot be written.
    """
    files = {part: _list(source, part) for part in _PARTS}
    _check_pairing(source, files)
    names = _class_names(source / NAMES_FILE)
    if names:
        target.write_class_names(names, SPLITS.values())
    samples = sorted(files["images"])
    tally = run_jobs(_Convert(source, target, link), samples, workers, "img")
    return summary("ade20k", tally, target.root)


@dataclass(frozen=True)
class _Convert:
    """Check one image and its labels and link them, given folder and name."""

    source: Path
    target: Target
    link: Link

    def __call__(self, sample: tuple[str, str]) -> Tally:
        folder, name = sample
        split = SPLITS[folder]
        image, labels = (
            self.source / part / folder / f"{name}{extension}" for part, extension in _PARTS.items()
        )
        key = f"{ONE_FOLDER}/{name}"
        paths = [
            self.target.path(split, "rgb", key, ".jpg"),
            self.target.path(split, "semseg", key),
        ]
        if self.target.is_done(paths):
            return Counter({(split, PRESENT): 1})
        if not _has_labels(image, labels):
            return Counter({(split, UNLABELLED): 1})
        for path, origin in zip(paths, (image, labels), strict=True):
            self.target.add_file(path, origin, self.link)
        return Counter({(split, WRITTEN): 1})


def _has_labels(image: Path, labels: Path) -> bool:
    """Check a pair; return whether any pixel is not void.

    Raises:
        UserError: The label map is invalid or does not match the image.
    """
    try:
        with Image.open(image) as picture:
            size = ImageOps.exif_transpose(picture).size
        with Image.open(labels) as stored:
            mode, ids = stored.mode, np.asarray(stored)
    except (OSError, SyntaxError, ValueError) as err:
        raise UserError(f"{image} or its label map {labels} cannot be read ({err}).") from err
    if mode not in ("L", "P"):
        raise UserError(
            f"{labels}: mode {mode} is not a map of class ids. Use ADEChallengeData2016 (150 "
            "classes), not the full ADE20K with its coloured maps."
        )
    if ids.shape != size[::-1]:
        raise UserError(
            f"{labels} is {ids.shape[0]} x {ids.shape[1]} (H x W) but its image {size[1]} x "
            f"{size[0]}. Download the pair again, or remove it."
        )
    if ids.max() > CLASSES:
        raise UserError(f"{labels}: class id {ids.max()} is outside 0..{CLASSES}.")
    return bool(ids.any())


def _list(source: Path, part: str) -> set[tuple[str, str]]:
    """List folder and name of every file of a part."""
    found = set()
    for folder in SPLITS:
        folder_path = source / part / folder
        if not folder_path.is_dir():
            raise UserError(
                f"{folder_path} does not exist: --source is ADEChallengeData2016, which holds "
                "{images,annotations}/{training,validation}."
            )
        found |= {(folder, p.stem) for p in folder_path.iterdir() if p.suffix == _PARTS[part]}
    return found


def _check_pairing(source: Path, files: dict[str, set[tuple[str, str]]]) -> None:
    everything = set.union(*files.values())
    missing = [
        f"{source / part / folder / name}{_PARTS[part]}"
        for part, have in files.items()
        for folder, name in sorted(everything - have)
    ]
    if missing or not everything:
        counts = ", ".join(f"{len(have)} {part}" for part, have in files.items())
        raise UserError(
            f"{source}: {counts}; missing files: {len(missing)}\n{bullet_list(missing)}\n"
            "Images and label maps must have the same names."
        )


def _class_names(path: Path) -> list[str]:
    """Class names by id from the data set's table; empty without it."""
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    except (OSError, UnicodeDecodeError):
        return []
    names = {row[0].strip(): row[-1].strip() for row in rows}
    ordered = [names.get(str(i), "") for i in range(1, CLASSES + 1)]
    return ["void", *ordered] if all(ordered) else []
