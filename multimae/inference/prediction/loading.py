"""Samples in batches: read, framed and stacked by loader processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from multimae.images.folders import MultiModalFolder
from multimae.images.inputs import Framed, stack
from multimae.images.pack import AnyPath
from multimae.images.pixels import ImageError, Pixels, size_of
from multimae.inference.prediction.predictor import Predictor
from multimae.inference.prediction.samples import Samples
from multimae.inference.prediction.truth_files import Truth
from multimae.inference.truth import MASK_VALID, mask_modality, validity_mask
from multimae.plotting.colours import Picture
from multimae.plotting.overlays import backdrop
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality


@dataclass
class Loaded:
    """Samples of a batch of one size and with the same modalities.

    Attributes:
        indices: Of the samples.
        framed: The samples, stacked.
        photos: Pictures to draw over; ``None`` if overlays are off.
        has_truth: Whether ``framed`` holds truths.
    """

    indices: list[int]
    framed: Framed
    photos: list[Picture | None]
    has_truth: bool


@dataclass
class Item:
    """One loaded sample; ``problems`` with its files, without ``framed`` if it is unusable."""

    index: int
    problems: list[str]
    framed: Framed | None = None
    photo: Picture | None = None
    has_truth: bool = False


class SampleDataset(Dataset[Item]):
    """Reads and frames samples."""

    def __init__(
        self,
        samples: Samples,
        indices: Sequence[int],
        predictor: Predictor,
        truth: Truth | None,
        *,
        overlay: bool,
        masks: Masks | None,
    ) -> None:
        """``indices``: of the samples to read."""
        self.samples, self.indices, self.truth = samples, indices, truth
        self.frame, self.overlay, self.masks = predictor.frame, overlay, masks

    def __len__(self) -> int:
        """Number of samples to read."""
        return len(self.indices)

    def __getitems__(self, positions: Sequence[int]) -> list[Item]:
        """Samples of a batch."""
        self.samples.prefetch([self.indices[position] for position in positions])
        return [self[position] for position in positions]

    def __getitem__(self, position: int) -> Item:
        """Sample ``indices[position]``."""
        index = self.indices[position]
        name = self.samples.names[index]
        try:
            pixels = self.samples.read(index)
            photo = self._photo(pixels) if self.overlay else None
            extra: list[Modality] = []
            if self.masks is not None:
                pixels |= self.masks.read(index)
                extra.append(mask_modality())
            size = max(size_of(p) for p in pixels.values())
            problems, truth = self._truth(name, size)
            if truth and self.truth is not None:
                pixels |= truth
                extra += self.truth.modalities
            scored = self.truth is not None and self.truth.has(name) and not problems
            return Item(index, problems, self.frame(pixels, extra), photo, scored)
        except ImageError as err:
            return Item(index, [str(err)])

    def _truth(self, name: str, size: tuple[int, int]) -> tuple[list[str], dict[str, Pixels]]:
        try:
            has = self.truth is not None and self.truth.has(name)
            return [], self.truth.read(name, size) if self.truth is not None and has else {}
        except ImageError as err:
            return [f"not scored: {err}"], {}

    def _photo(self, pixels: Mapping[str, Pixels]) -> Picture:
        photos = [m for m in self.samples.modalities if m.is_photo]
        chosen = (photos or list(self.samples.modalities))[0]
        return backdrop(pixels[chosen.name], chosen)


class Masks:
    """``mask_valid`` of the samples' data roots, for models that were trained with it."""

    def __init__(self, samples: Samples) -> None:
        """Index the maps.

        Raises:
            UserError: Samples come from single files, or lack a map.
        """
        self._samples, self._row = samples, mask_modality()
        self._folders: dict[AnyPath, tuple[MultiModalFolder, dict[str, int]]] = {}
        for index in range(len(samples)):
            found = samples.folder_of(index)
            root = found[0].root if found else None
            if root is None:
                raise UserError("--use_mask_valid needs a data root with the folder mask_valid.")
            if root not in self._folders:
                folder = MultiModalFolder(root, [self._row])
                names = {folder.name(i): i for i in range(len(folder))}
                self._folders[root] = (folder, names)

    def read(self, index: int) -> dict[str, Pixels]:
        """The map of a sample."""
        found = self._samples.folder_of(index)
        assert found is not None
        folder, names = self._folders[found[0].root]
        name = self._samples.names[index]
        if name not in names:
            raise ImageError(f"{folder.root / MASK_VALID / name}: no file of mask_valid.")
        path = folder.path(names[name], self._row)
        return {MASK_VALID: validity_mask(folder.read(names[name], self._row), path)}


def collate(items: Sequence[Item]) -> tuple[list[Loaded], list[Item]]:
    """Stack the samples that fit each other; also returns those with problems."""
    groups: dict[object, list[Item]] = {}
    for item in items:
        if item.framed is not None:
            key = tuple((name, x.shape) for name, x in item.framed.images.items())
            groups.setdefault((item.has_truth, key), []).append(item)
    loaded = [
        Loaded(
            [item.index for item in group],
            stack([item.framed for item in group if item.framed is not None]),
            [item.photo for item in group],
            group[0].has_truth,
        )
        for group in groups.values()
    ]
    return loaded, [item for item in items if item.problems]
