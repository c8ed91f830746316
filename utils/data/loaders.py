"""From folders to batches: the data set, its batches, its loaders and the check before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multimae.images import ImageError, Pixels, check_readable, check_same_view, read
from utils.data.folders import MultiModalFolder
from utils.data.samplers import EvalBatchSampler, GlobalBatchSampler, SampleKey, sample_rng
from utils.data.transforms import JointTransform
from utils.errors import UserError, bullet_list


class Sample(NamedTuple):
    """One sample: tensors by modality (see :class:`JointTransform`) and ``sub-folder/name``."""

    images: dict[str, Tensor]
    name: str


@dataclass
class Batch:
    """Stacked samples.

    Attributes:
        images: By modality, in storage dtype: images ``(B, C, h, w)``, labels ``(B, h, w)``.
        names: ``sub-folder/name`` of every sample.
    """

    images: dict[str, Tensor]
    names: list[str]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.names)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``; copies from pinned memory overlap with computation."""
        moved = {k: v.to(device, non_blocking=True) for k, v in self.images.items()}
        return Batch(moved, self.names)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by the DataLoader)."""
        return Batch({k: v.pin_memory() for k, v in self.images.items()}, self.names)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples."""
    keys = samples[0].images
    images = {key: torch.stack([s.images[key] for s in samples]) for key in keys}
    return Batch(images, [s.name for s in samples])


class MultiModalDataset(Dataset[Sample]):
    """Samples of a folder, transformed; asked by :class:`SampleKey`."""

    def __init__(
        self,
        folder: MultiModalFolder,
        transform: JointTransform,
        *,
        seed: int = 0,
        patch_size: int = 1,
        limit: int | None = None,
    ) -> None:
        """Wire reading and transform.

        Args:
            folder: Index of the files.
            transform: Joint transform of the same modalities.
            seed: Of the augmentation.
            patch_size: Patch side in full-resolution pixels; smaller images are refused.
            limit: Only so many samples, spread evenly over the folder; all if ``None``.

        Raises:
            UserError: A modality is declared in a way that image files cannot hold.
        """
        try:
            for m in folder.modalities:
                check_readable(m)
        except ImageError as err:
            raise UserError(str(err)) from err
        self.folder, self.transform = folder, transform
        self.seed, self.patch_size = seed, patch_size
        self.limit = limit

    def __len__(self) -> int:
        """Number of samples."""
        return min(len(self.folder), self.limit or len(self.folder))

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of ``key.index`` as augmented in ``key.epoch``.

        Raises:
            UserError: A file of the sample is bad; the message says which and why.
        """
        place = self._place(key.index)
        pixels, problems = self._read(place)
        if problems:
            raise UserError(problems[0])
        with sample_rng(self.seed, key):
            return Sample(self.transform(pixels), self.folder.name(place))

    def problems(self, index: int) -> list[str]:
        """What is wrong with the files of a sample, one message each; empty if nothing."""
        return self._read(self._place(index))[1]

    def _place(self, index: int) -> int:
        """Where a sample of this set stands in the folder."""
        return index * len(self.folder) // len(self)

    def _read(self, index: int) -> tuple[dict[str, Pixels], list[str]]:
        """Pixels of all modalities of a place in the folder, or what is wrong with them."""
        paths: dict[str, Path] = {}
        pixels: dict[str, Pixels] = {}
        problems: list[str] = []
        for m in self.folder.modalities:
            paths[m.name] = self.folder.path(index, m)
            try:
                pixels[m.name] = read(paths[m.name], m, self.patch_size)
            except ImageError as err:
                problems.append(str(err))
        try:
            if not problems:
                check_same_view(pixels, paths)
        except ImageError as err:
            problems.append(str(err))
        return pixels, problems


def check_samples(dataset: MultiModalDataset, count: int) -> None:
    """Read up to ``count`` evenly spread samples, so that bad files are known before training.

    Raises:
        UserError: With every bad file found.
    """
    total = len(dataset)
    count = min(count, total)
    problems = [p for i in range(count) for p in dataset.problems(i * total // count)]
    if problems:
        raise UserError(
            f"{len(problems)} bad files among {count} of {total} samples checked in "
            f"{dataset.folder.root}:\n{bullet_list(problems)}"
        )


def build_train_loader(
    dataset: MultiModalDataset,
    sampler: GlobalBatchSampler,
    *,
    num_workers: int,
    pin_memory: bool,
    prefetch_factor: int = 2,
) -> DataLoader[Sample]:
    """Loader of training batches (:class:`Batch`); call ``sampler.set_epoch`` before each epoch.

    Args:
        dataset: Training samples.
        sampler: Order and share of this rank.
        num_workers: Decoding processes, kept over epochs; 0 decodes in this one. The batches are
            the same for any number.
        pin_memory: Put batches in page-locked memory, for faster copies to a GPU.
        prefetch_factor: Batches that each worker prepares ahead.
    """
    return _build(dataset, sampler, num_workers, pin_memory, prefetch_factor)


def build_eval_loader(
    dataset: MultiModalDataset,
    sampler: EvalBatchSampler,
    *,
    num_workers: int,
    pin_memory: bool,
    prefetch_factor: int = 2,
) -> DataLoader[Sample]:
    """Loader of evaluation batches (:class:`Batch`); arguments as in :func:`build_train_loader`."""
    return _build(dataset, sampler, num_workers, pin_memory, prefetch_factor)


def _build(
    dataset: MultiModalDataset,
    sampler: GlobalBatchSampler | EvalBatchSampler,
    num_workers: int,
    pin_memory: bool,
    prefetch_factor: int,
) -> DataLoader[Any]:
    workers: dict[str, Any] = {}
    if num_workers:
        workers = {"prefetch_factor": prefetch_factor, "persistent_workers": True}
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        collate_fn=collate,
        # Each iterator draws a base seed: from here, it leaves the training's own generator alone.
        generator=torch.Generator(),
        **workers,
    )
