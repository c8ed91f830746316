"""Samples for semantic segmentation: inputs, a label map, and checks of label maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from multimae.images.folders import CLASSES_FILE, MultiModalFolder
from multimae.images.pixels import ImageError, Pixels, size_of
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from utils.data.dataset import MultiModalDataset
from utils.data.transforms import JointTransform

IGNORE = 255
MASK_VALID = "mask_valid"


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
            target: Modality of the stored label maps (ids up to 255); its ``no_data`` is void.
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
            problems = read_validity(self.folder, index, pixels)
        if not problems and self.target.no_data is not None:
            labels = np.asarray(pixels[self.target.name])
            empty = labels == self.target.no_data
            pixels[self.target.name] = np.where(empty, np.uint8(IGNORE), labels)
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


def validity_mask(pixels: Pixels, path: object) -> npt.NDArray[np.uint8]:
    """A validity mask as 0 and 255; a file of 0 and 1 marks valid pixels by 1.

    Raises:
        ImageError: It holds other values.
    """
    values = np.asarray(pixels)
    found = set(np.unique(values).tolist())
    if not (found <= {0, 255} or found <= {0, 1}):
        other = min(found - {0, 255})
        raise ImageError(
            f"{path}: a validity mask holds 0 and 255 (valid), or 0 and 1; this one has "
            f"{other}. Store it as 0 and 255."
        )
    return np.where(values > 0, 255, 0).astype(np.uint8)


def read_validity(folder: MultiModalFolder, index: int, pixels: dict[str, Pixels]) -> list[str]:
    """Convert the validity mask of a sample, if it has one, to 0 and 255; returns problems."""
    masks = [m for m in folder.modalities if m.name == MASK_VALID and m.name in pixels]
    try:
        for m in masks:
            pixels[m.name] = validity_mask(pixels[m.name], folder.path(index, m))
    except ImageError as err:
        return [str(err)]
    return []


def stored_target(target: Modality) -> Modality:
    """Modality that reads label maps as stored: every 8-bit id, void included."""
    return dataclasses.replace(target, num_classes=IGNORE + 1, class_names=())


def reduced_class_names(
    names: Sequence[str] | None, num_classes: int, zero_is_void: bool, source: str = CLASSES_FILE
) -> tuple[str, ...]:
    """Names of the predicted classes from those of the stored ids; empty if there are none.

    Raises:
        UserError: There is another number of names than of ids, void included.
    """
    names, first = tuple(names or ()), int(zero_is_void)
    if names and len(names) != num_classes + first:
        hint = f"Set num_classes to {len(names) - first}, or correct the file."
        if zero_is_void and len(names) == num_classes:
            hint = f"If id 0, '{names[0]}', is a class, drop seg_reduce_zero_label."
        if not zero_is_void and len(names) == num_classes + 1:
            hint = (
                f"If id 0, '{names[0]}', is void, set seg_reduce_zero_label. Otherwise s{hint[1:]}"
            )
        void = " and void as id 0 (seg_reduce_zero_label)" if zero_is_void else ""
        raise UserError(
            f"{source}: {len(names)} names, from '{names[0]}' to '{names[-1]}', but num_classes is "
            f"{num_classes}{void}. {hint}"
        )
    return names[first:]


def check_same_classes(
    names: Sequence[str], others: Sequence[str], source: object, other_source: object
) -> None:
    """Raise a UserError if two sources name the classes differently; unnamed ones fit any."""
    if not names or not others or tuple(names) == tuple(others):
        return
    different = next((i for i, (a, b) in enumerate(zip(names, others, strict=False)) if a != b), 0)
    raise UserError(
        f"the classes of {source} and {other_source} differ: {len(names)} and {len(others)} names; "
        f"class {different} is '{names[different]}' and '{others[different]}'. Equal ids must mean "
        f"equal classes: correct {CLASSES_FILE}, or remap the label maps."
    )
