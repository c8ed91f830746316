"""From folders to batches: the data set, its batches, its loaders and the check before training."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from multimae.images.pixels import ImageError, Pixels, check_readable, check_same_view
from multimae.images.readers import reuse_pillow_memory
from multimae.specs.modalities import Modality
from utils.data.batches import BadSample, Sample, Samples, collate
from utils.data.folders import MultiModalFolder, SamplePaths
from utils.data.samplers import EvalBatchSampler, GlobalBatchSampler, SampleKey, sample_rng
from utils.data.shared_memory import BatchKeys, PooledBatchSampler, SharedMemoryPool
from utils.data.transforms import JointTransform
from utils.distributed.signals import end_workers, leave_to_parent
from utils.logs.errors import UserError, bullet_list


class MultiModalDataset(Dataset[Sample | BadSample]):
    """Samples of a folder, transformed; asked by :class:`SampleKey`.

    Attributes:
        skip_bad: Whether bad samples are given as :class:`BadSample`.
        known_bad: Bad samples known before training (see :func:`check_samples`).
    """

    def __init__(
        self,
        folder: MultiModalFolder,
        transform: JointTransform,
        *,
        seed: int = 0,
        patch_size: int = 1,
        limit: int | None = None,
        skip_bad: bool = False,
        fast_decode: bool = False,
    ) -> None:
        """Wire reading and transform.

        Args:
            folder: Index of the files.
            transform: Joint transform of the same modalities.
            seed: Of the augmentation.
            patch_size: Patch side in full-resolution pixels; smaller images are refused.
            limit: Only so many samples, spread evenly over the folder; all if ``None``.
            skip_bad: Give samples whose files are bad as :class:`BadSample`; for training only, as
                a score over fewer samples is another score.
            fast_decode: Photographs at nearly the same values (:mod:`utils.data.fast_decode`).

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
        self.limit, self.skip_bad, self.fast_decode = limit, skip_bad, fast_decode
        self.known_bad: list[BadSample] = []

    def __len__(self) -> int:
        """Number of samples."""
        return min(len(self.folder), self.limit or len(self.folder))

    def __getitem__(self, key: SampleKey) -> Sample | BadSample:
        """The sample of ``key.index`` as augmented in ``key.epoch``.

        Raises:
            UserError: A file of the sample is bad; the message says which and why. Not with
                ``skip_bad``.
        """
        place = self._place(key.index)
        pixels, problems = self._read(place)
        if not problems:
            try:
                with sample_rng(self.seed, key):
                    images = self.transform(pixels)
                absent = tuple(m.name for m in self.folder.modalities if m.name not in pixels)
                return Sample(images, self.folder.name(place), absent)
            except ImageError as err:  # of what is decoded only now
                problems = [str(err)]
        if self.skip_bad:
            return BadSample(self.folder.name(place), " ".join(problems))
        raise UserError(problems[0])

    def __getitems__(self, keys: Sequence[SampleKey]) -> Samples:
        """The samples of a batch, with the block that their keys come with."""
        samples = Samples(self[key] for key in keys)
        samples.block = keys.block if isinstance(keys, BatchKeys) else None
        return samples

    def name(self, index: int) -> str:
        """``sub-folder/name`` of a sample."""
        return self.folder.name(self._place(index))

    def has(self, index: int, modality: Modality) -> bool:
        """Whether a sample has a file of a modality."""
        return self.folder.has(self._place(index), modality)

    def problems(self, index: int) -> list[str]:
        """What is wrong with the files of a sample, one message each; empty if nothing."""
        return self._read(self._place(index), thorough=True)[1]

    def _place(self, index: int) -> int:
        """Where a sample of this set stands in the folder."""
        return index * len(self.folder) // len(self)

    def _read(self, index: int, thorough: bool = False) -> tuple[dict[str, Pixels], list[str]]:
        """Pixels of all modalities of a place in the folder, or what is wrong with them.

        ``thorough``: compare checksums, and decode everything now.
        """
        how = {"verify": thorough, "fast": self.fast_decode and not thorough}
        pixels: dict[str, Pixels] = {}
        problems: list[str] = []
        for m in self.folder.modalities:
            if not self.folder.has(index, m):
                continue
            try:
                pixels[m.name] = self.folder.read(index, m, self.patch_size, **how)
            except ImageError as err:
                problems.append(str(err))
        try:
            if not problems:
                check_same_view(pixels, SamplePaths(self.folder, index))
        except ImageError as err:
            problems.append(str(err))
        return pixels, problems


def check_samples(dataset: MultiModalDataset, count: int, max_bad: int = 0) -> list[BadSample]:
    """Read up to ``count`` evenly spread samples, so that bad files are known before training.

    Args:
        dataset: What to read; its ``known_bad`` is set.
        count: Samples to read.
        max_bad: Bad samples that a set with ``skip_bad`` may have.

    Returns:
        Of a set with ``skip_bad``: samples that lack a file, and the bad ones among those read.

    Raises:
        UserError: With every bad file found; of a set with ``skip_bad`` only if more than
            ``max_bad`` samples are bad.
    """
    total, root = len(dataset), dataset.folder.root
    count = min(count, total)
    places = [i * total // count for i in range(count)]
    found = {i: problems for i in places if (problems := dataset.problems(i))}
    if not dataset.skip_bad:
        problems = [p for of_sample in found.values() for p in of_sample]
        if problems:
            raise UserError(
                f"{len(problems)} bad files among {count} of {total} samples checked in "
                f"{root}:\n{bullet_list(problems)}"
            )
        return []
    bad = [BadSample(str(path), problem) for path, problem in dataset.folder.incomplete]
    bad += [BadSample(dataset.name(i), " ".join(problems)) for i, problems in found.items()]
    if len(bad) > max_bad:
        raise UserError(
            f"{len(bad)} bad samples in {root} ({len(dataset.folder.incomplete)} lack a file, "
            f"{len(found)} of {count} read cannot be used), more than max_bad_samples {max_bad}:\n"
            f"{bullet_list([b.problem for b in bad])}\nMend the files, or raise --max_bad_samples."
        )
    dataset.known_bad = bad
    return bad


def build_train_loader(
    dataset: MultiModalDataset,
    sampler: GlobalBatchSampler,
    *,
    num_workers: int,
    pin_memory: bool,
    prefetch_factor: int = 2,
    held: int = 1,
) -> DataLoader[Any]:
    """Loader of training batches (:class:`Batch`), those that ``sampler`` was last set to.

    Args:
        dataset: Training samples.
        sampler: Order and share of this rank.
        num_workers: Decoding processes, kept over epochs; 0 decodes in this one. The batches are
            the same for any number.
        pin_memory: Put batches in page-locked memory, for faster copies to a GPU.
        prefetch_factor: Batches that each worker prepares ahead.
        held: Batches that the training has at a time. More of them cost time, and are the same.
    """
    return _build(dataset, sampler, num_workers, pin_memory, prefetch_factor, held)


def build_eval_loader(
    dataset: MultiModalDataset,
    sampler: EvalBatchSampler,
    *,
    num_workers: int,
    pin_memory: bool,
    prefetch_factor: int = 2,
) -> DataLoader[Any]:
    """Loader of evaluation batches (:class:`Batch`); arguments as in :func:`build_train_loader`."""
    return _build(dataset, sampler, num_workers, pin_memory, prefetch_factor, held=1)


def _build(
    dataset: MultiModalDataset,
    sampler: GlobalBatchSampler | EvalBatchSampler,
    num_workers: int,
    pin_memory: bool,
    prefetch_factor: int,
    held: int,
) -> DataLoader[Any]:
    workers: dict[str, Any] = {}
    batches: Sampler[list[SampleKey]] = sampler
    reuse_pillow_memory()
    if num_workers:
        # What processes work on or have ready, what the training has, and what it takes next.
        count = num_workers * prefetch_factor + 2 * held
        pool = SharedMemoryPool(count, sampler.batch_size * dataset.transform.sample_bytes())
        batches = PooledBatchSampler(sampler, pool)
        atexit.register(end_workers)  # where no script does it
        workers = {
            "prefetch_factor": prefetch_factor,
            "persistent_workers": True,
            "worker_init_fn": leave_to_parent,
        }
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        collate_fn=collate,
        # Each iterator draws a base seed: from here, it leaves the training's own generator alone.
        generator=torch.Generator(),
        **workers,
    )
