"""Samples for semantic segmentation: inputs, a label map, and checks of label maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from multimae.images.pixels import Pixels, size_of
from multimae.specs.modalities import Modality
from utils.data.dataset import MultiModalDataset
from utils.data.folders import MultiModalFolder
from utils.data.transforms import JointTransform

IGNORE = 255


class SegmentationDataset(MultiModalDataset):
    """Samples of a folder whose modality ``target`` holds label maps as data sets store them."""

    def __init__(
        self,
        folder: MultiModalFolder,
        transform: JointTransform,
        target: Modality,
        *,
        num_classes: int,
        zero_is_void: bool,
        seed: int = 0,
        patch_size: int = 1,
        limit: int | None = None,
        skip_bad: bool = False,
        fast_decode: bool = False,
    ) -> None:
        """Add the classes to the base class.

        Args:
            folder: Index of the files, ``target`` among its modalities.
            transform: Joint transform of the same modalities.
            target: Modality of the stored label maps (ids up to 255).
            num_classes: Classes without void.
            zero_is_void: Ids are ``1 .. num_classes`` and 0 is void; else ``0 .. num_classes - 1``.
            seed: As in the base class, like all below.
            patch_size: Smaller images are refused.
            limit: Number of samples.
            skip_bad: Return bad samples as :class:`BadSample`.
            fast_decode: Decode photos faster.
        """
        super().__init__(
            folder,
            transform,
            seed=seed,
            patch_size=patch_size,
            limit=limit,
            skip_bad=skip_bad,
            fast_decode=fast_decode,
        )
        self.target = target
        self.first = int(zero_is_void)
        self.last = num_classes - 1 + self.first
        self.void = (0, IGNORE) if zero_is_void else (IGNORE,)

    def _read(self, index: int, thorough: bool = False) -> tuple[dict[str, Pixels], list[str]]:
        pixels, problems = super()._read(index, thorough)
        if not problems:
            problems = self._label_problems(index, pixels)
        return pixels, problems

    def _label_problems(self, index: int, pixels: dict[str, Pixels]) -> list[str]:
        path = self.folder.path(index, self.target)
        labels = np.asarray(pixels[self.target.name])
        largest = max((size_of(p) for p in pixels.values()), default=(0, 0))
        if labels.shape != largest:
            return [
                f"{path}: the label map is {labels.shape[0]} x {labels.shape[1]} (H x W) but the "
                f"images of the sample are {largest[0]} x {largest[1]}. Store it at their size, "
                "resized without interpolation."
            ]
        ids = np.unique(labels)
        valid = ids[~np.isin(ids, self.void)]
        void = " and ".join(map(str, self.void))
        if not len(valid):
            return [f"{path}: every pixel of the label map is void ({void}). Remove the sample."]
        wrong = valid[(valid < self.first) | (valid > self.last)]
        if len(wrong):
            return [
                f"{path}: class id {int(wrong[0])} is outside {self.first}..{self.last} (void: "
                f"{void}). Set num_classes and seg_reduce_zero_label to what the files hold, or "
                "remap the ids."
            ]
        return []


def stored_target(target: Modality) -> Modality:
    """Modality that reads label maps as stored: every 8-bit id, void included."""
    return dataclasses.replace(target, num_classes=IGNORE + 1)


def reduced_class_names(
    names: Sequence[str] | None, num_classes: int, zero_is_void: bool
) -> tuple[str, ...]:
    """Names of the predicted classes from those of the stored ids; empty if counts differ."""
    names = tuple(names or ())[int(zero_is_void) :]
    return names if len(names) == num_classes else ()
