"""Taskonomy: its files, its tasks, its splits (Zamir et al. 2018; SPEC section 6).

Files: ``{root}/{task}/{building}/point_{p}_view_{v}_domain_{task}.png``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from multimae.images.folders import MultiModalFolder, sub_folders
from multimae.images.index.listing import FindIndex, list_now
from multimae.images.pack import AnyPath, to_path
from multimae.images.pixels import Pixels
from multimae.inference.truth import MASK_VALID, SATURATED, ZBUFFER
from multimae.specs.errors import UserError
from multimae.specs.modalities import IMAGENET_MEAN, IMAGENET_STD, Modality, ModalityTable
from utils.data.dataset import MultiModalDataset
from utils.data.sets.label_maps import read_validity

Subset = Literal["train", "val", "test"]
SPLITS_FILE = "splits.json"
VALID = ZBUFFER
FARTHEST = 8000.0  # 1/512 m; depth beyond counts as this
STRONGEST_EDGE = 0.25 * 65535
OFFICIAL = {
    "val": frozenset({"collierville", "corozal", "darden", "markleeville"}),
    "test": frozenset({"ihlen", "mcdade", "muleshoe", "noxapater", "uvalda"}),
}
"""Official buildings of Taskonomy-tiny, which training never sees."""


def _scalar(name: str, max_value: float = 65535.0) -> Modality:
    return Modality(
        name,
        num_channels=1,
        max_value=max_value,
        interpolation="nearest",
        loss="l1",
        plot="scalar",
    )


# Modality of a task, and how many of its channels are predicted.
TASKS: dict[str, tuple[Modality, int]] = {
    "depth_zbuffer": (_scalar("depth_zbuffer", FARTHEST), 1),
    "depth_euclidean": (_scalar("depth_euclidean", FARTHEST), 1),
    "edge_texture": (_scalar("edge_texture", STRONGEST_EDGE), 1),
    "edge_occlusion": (_scalar("edge_occlusion"), 1),
    "keypoints2d": (_scalar("keypoints2d"), 1),
    "keypoints3d": (_scalar("keypoints3d"), 1),
    "normal": (
        Modality("normal", interpolation="nearest", loss="l1", hflip_negate=(0,), plot="normals"),
        3,
    ),
    "principal_curvature": (
        Modality("principal_curvature", interpolation="nearest", loss="l1", plot="scalar"),
        2,
    ),
    "reshading": (Modality("reshading", interpolation="nearest", loss="l1", plot="scalar"), 1),
    "rgb": (
        Modality("rgb", mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear"),
        3,
    ),
}


def taskonomy_modalities() -> ModalityTable:
    """Modalities of all tasks by name."""
    return {name: modality for name, (modality, _) in TASKS.items()}


class TaskonomyFolder(MultiModalFolder):
    """Views of the buildings of one subset; the first ``limit`` of its list."""

    def __init__(
        self,
        root: str | AnyPath,
        modalities: Sequence[Modality],
        buildings: frozenset[str],
        limit: int | None = None,
        *,
        views: Sequence[str] | None = None,
        skip_incomplete: bool = False,
        find: FindIndex = list_now,
    ) -> None:
        """Scan the folders.

        Args:
            root: Folder of the tasks' folders.
            modalities: Modalities to pair.
            buildings: Those of the subset.
            limit: Largest number of views.
            views: ``building/point_P_view_V`` of the subset, in order; all, by name, if ``None``.
            skip_incomplete: Skip views that lack a file.
            find: As in the base class.

        Raises:
            UserError: As the base class; also if no view is left.
        """
        self.buildings, self.limit, self.views = buildings, limit, views
        super().__init__(root, modalities, skip_incomplete=skip_incomplete, find=find)
        if not len(self):
            raise UserError(
                f"no view of {len(buildings)} buildings in {root}: check the split file and the "
                "buildings' folders."
            )

    def suffix(self, modality: Modality) -> str:
        """``_domain_{task}``."""
        task = VALID if modality.data_folder == MASK_VALID else modality.data_folder
        return f"_domain_{task}"

    @property
    def selection(self) -> object:
        """Buildings, list of views and limit."""
        return sorted(self.buildings), self.limit, self.views

    def select(self, names: list[str]) -> list[str]:
        """The first views of the subset's list."""
        if self.views is not None:
            known = set(names)
            missing = [key for key in self.views if key not in known]
            if missing:
                raise UserError(
                    f"{self.root}: {len(missing)} of {len(self.views)} listed views have no file, "
                    f"such as {missing[0]}. Check the list and the folders."
                )
            names = list(self.views)
        keys = [key for key in names if key.partition("/")[0] in self.buildings]
        return keys[: self.limit]


class TaskonomyDataset(MultiModalDataset):
    """Views with at least one valid pixel each."""

    def _read(self, index: int, thorough: bool = False) -> tuple[dict[str, Pixels], list[str]]:
        pixels, problems = super()._read(index, thorough)
        problems = problems or read_validity(self.folder, index, pixels)
        if not problems and MASK_VALID in pixels:
            if not (np.asarray(pixels[MASK_VALID]) == 255).any():
                problems = [f"{self.folder.name(index)}: no pixel of mask_valid is 255. Remove it."]
        elif not problems and (np.asarray(pixels[VALID]) >= SATURATED).all():
            path = self.folder.path(index, TASKS[VALID][0])
            problems = [f"{path}: no pixel has a valid depth (all are {SATURATED}). Remove it."]
        return pixels, problems


def buildings_of(root: str | AnyPath, subset: Subset, split_file: str = "") -> frozenset[str]:
    """Buildings of a subset.

    Read from ``split_file`` (the official CSV with columns id, train, val, test of 0 and 1), else
    from ``root/splits.json``; without either the official buildings are evaluated on, or, if
    there are none, the folders of a task are split 8 : 1 : 1 by name. The official evaluation
    buildings are never in ``train``.

    Raises:
        UserError: Unreadable file, or too few buildings to split.
    """
    chosen = _listed_buildings(root, subset, split_file)
    return chosen - OFFICIAL["val"] - OFFICIAL["test"] if subset == "train" else chosen


def _listed_buildings(root: str | AnyPath, subset: Subset, split_file: str) -> frozenset[str]:
    if split_file:
        return _from_csv(Path(split_file), subset)
    listed = to_path(root) / SPLITS_FILE
    if listed.is_file():
        try:
            return frozenset(json.loads(listed.read_text(encoding="utf-8")).get(subset, ()))
        except (OSError, ValueError, AttributeError) as err:
            raise UserError(f"{listed}: not a split list ({err}). Fix or remove it.") from err
    folders = [to_path(root) / task for task in sorted(TASKS)]
    tasks = [folder for folder in folders if folder.is_dir()]
    names = sub_folders(tasks[0]) if tasks else []
    official = {s: OFFICIAL[s] & set(names) for s in OFFICIAL}
    if any(official.values()):
        rest = frozenset(names) - OFFICIAL["val"] - OFFICIAL["test"]
        return rest if subset == "train" else official[subset]
    if len(names) < 3:
        raise UserError(
            f"{root}: {len(names)} buildings are too few to split. Expected "
            "TASK/BUILDING/point_P_view_V_domain_TASK.png; or pass the split as a CSV."
        )
    step = min(10, len(names))
    chosen = {
        "val": [n for i, n in enumerate(names) if i % step == step - 1],
        "test": [n for i, n in enumerate(names) if i % step == step // 2],
    }
    held_out = {n for group in chosen.values() for n in group}
    chosen["train"] = [n for n in names if n not in held_out]
    return frozenset(chosen[subset])


def listed_views(root: str | AnyPath, subset: Subset) -> list[str] | None:
    """``building/point_P_view_V`` of ``root/{subset}.csv`` (building, point, view), if it exists.

    Raises:
        UserError: Not such a list.
    """
    path = to_path(root) / f"{subset}.csv"
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise UserError(f"image list {path}: cannot be read ({err}).") from err
    if not rows or not {"building", "point", "view"} <= rows[0].keys():
        raise UserError(f"image list {path}: expected the columns building, point, view.")
    return [f"{r['building']}/point_{r['point']}_view_{r['view']}" for r in rows]


def _from_csv(path: Path, subset: Subset) -> frozenset[str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise UserError(f"split file {path}: cannot be read ({err}).") from err
    if not rows or not {"id", subset} <= rows[0].keys():
        raise UserError(f"split file {path}: expected the columns id, train, val, test.")
    return frozenset(row["id"] for row in rows if row[subset].strip() == "1")
