"""Samples for semantic segmentation: inputs, a label map, and checks of label maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from multimae.images.folders import CLASSES_FILE, MultiModalFolder
from multimae.images.pixels import ImageError, Pixels, size_of
from multimae.inference.truth import IGNORE, MASK_VALID, label_problem, validity_mask, with_void
from multimae.specs.coercion import repeated
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from utils.data.dataset import MultiModalDataset
from utils.data.sample_checks import LabelTable
from utils.data.transforms import JointTransform


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
        self.num_classes, self.zero_is_void = num_classes, zero_is_void

    def _read(self, index: int, thorough: bool = False) -> tuple[dict[str, Pixels], list[str]]:
        pixels, problems = super()._read(index, thorough)
        if not problems:
            problems = read_validity(self.folder, index, pixels)
        if not problems:
            labels = np.asarray(pixels[self.target.name])
            pixels[self.target.name] = with_void(labels, self.target)
            problems = self._label_problems(index, pixels)
        return pixels, problems

    def class_pixels(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Read the label map of every sample.

        Returns:
            By class, its pixels, and the pixels of all label maps that contain it; of a mix, in
            an average epoch.

        Raises:
            UserError: A label map cannot be read. Not with ``skip_bad``.
        """
        pixels, present = np.zeros((2, IGNORE + 1))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for part, times in zip(self.parts, self.folder.times_per_epoch, strict=True):
                assert isinstance(part, SegmentationDataset)
                for counts in pool.map(part._ids, range(len(part))):
                    pixels += times * counts
                    present += times * np.where(counts > 0, counts.sum(), 0)
        first = int(self.zero_is_void)
        classes = slice(first, first + self.num_classes)
        return pixels[classes], present[classes]

    def _ids(self, index: int) -> npt.NDArray[np.int64]:
        """Pixels of the label map of a sample by stored id."""
        index = self._folder_index(index)
        try:
            labels = self.folder.read(index, self.target, self.patch_size)
        except ImageError as err:
            if not self.skip_bad:
                raise UserError(str(err)) from err
            return np.zeros(IGNORE + 1, np.int64)
        stored = with_void(np.asarray(labels), self.target)
        return np.bincount(stored.reshape(-1), minlength=IGNORE + 1)

    def _label_problems(self, index: int, pixels: dict[str, Pixels]) -> list[str]:
        path = self.folder.path(index, self.target)
        labels = np.asarray(pixels[self.target.name])
        largest = max((size_of(p) for p in pixels.values()), default=(0, 0))
        problem = label_problem(labels, path, largest, self.num_classes, self.zero_is_void)
        return [problem] if problem else []


def read_validity(folder: MultiModalFolder, index: int, pixels: dict[str, Pixels]) -> list[str]:
    """Convert the validity mask of a sample, if it has one, to 0 and 255; returns problems."""
    masks = [m for m in folder.modalities if m.name == MASK_VALID and m.name in pixels]
    try:
        for m in masks:
            pixels[m.name] = validity_mask(pixels[m.name], folder.path(index, m))
    except ImageError as err:
        return [str(err)]
    return []


def reduced_class_names(
    names: Sequence[str] | None, num_classes: int, zero_is_void: bool, source: str = CLASSES_FILE
) -> tuple[str, ...]:
    """Names of the predicted classes from those of the stored ids; empty if there are none.

    Raises:
        UserError: There is another number of names than of ids, void included, or two classes have
            the same name.
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
    if repeated(names[first:]):
        raise UserError(
            f"{source}: two classes are called {repeated(names[first:])}. Give every class its own "
            "name, or make them one with label_map."
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


def check_classes(table: LabelTable) -> None:
    """Raise a UserError if void leaves one class only, as in masks of 0 and 255."""
    ids = np.flatnonzero(table.counts).tolist()
    found = [i for i in ids if i in table.classes]
    void = [i for i in ids if i not in table.classes]
    if len(found) == 1 and void:
        first = table.classes[0]
        entries = ", ".join(f"{i} ({table.share(i)})" for i in ids)
        raise UserError(
            f"labels '{table.name}' of {table.root}: the checked samples hold the ids {entries}; "
            f"{' and '.join(map(str, void))} is void, so only class {found[0]} of "
            f"{len(table.classes)} is left and nothing can be learned. Store the classes as ids "
            f"{first}..{table.classes[-1]} (a mask of 0 and 255 as 0 and 1)"
            + (", or drop seg_reduce_zero_label." if table.zero_is_void else ".")
        )
