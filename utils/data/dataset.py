"""From folders to batches: the data set, its loaders, and the check of files before training."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from multimae.images.folders import MultiModalFolder, spread_indices
from multimae.images.pixels import ImageError, Pixels, check_readable, check_same_view
from multimae.images.readers import reuse_pillow_memory
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.modalities import Modality
from utils.data.batches import BadSample, Sample, Samples
from utils.data.samplers import EvalBatchSampler, GlobalBatchSampler, SampleKey, sample_rng
from utils.data.transforms import JointTransform
from utils.distributed.script import end_workers, leave_to_parent

PREFETCH = 32
"""Samples of remote packs to fetch concurrently, and to hold in memory, per process."""


_CHECK_THREADS = min(8, os.cpu_count() or 1)


class CheckedSample(NamedTuple):
    """Problems with the files of a sample; pixels of every id, and ranges of scalar maps."""

    problems: list[str]
    label_counts: dict[str, npt.NDArray[np.int64]]
    value_ranges: dict[str, tuple[float, float] | None]


class MultiModalDataset(Dataset[Sample | BadSample]):
    """Transformed samples of a folder, indexed by :class:`SampleKey`.

    Attributes:
        skip_bad: Whether bad samples are returned as :class:`BadSample`.
        known_bad: Bad samples found before training (see :func:`check_samples`).
        label_counts: Pixels of every id in the checked samples, by label modality.
        value_ranges: Least and largest valid value above 0 in the checked samples, by scalar map.
        tops: Largest such value of every checked sample, 0 without any, by scalar map.
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
        """Check that image files can hold the modalities.

        Args:
            folder: Index of the files.
            transform: Joint transform of the same modalities.
            seed: Seed of the augmentation.
            patch_size: Patch side in full-resolution pixels; smaller images are refused.
            limit: Number of samples, evenly spaced in the folder; all if ``None``.
            skip_bad: Return samples with bad files as :class:`BadSample`; for training only, as
                scores over fewer samples are not comparable.
            fast_decode: Decode photos faster, with nearly the same values
                (:mod:`multimae.images.fast_decode`).

        Raises:
            UserError: Image files cannot hold a modality as declared.
        """
        try:
            for m in folder.modalities:
                check_readable(m)
        except ImageError as err:
            raise UserError(str(err)) from err
        self.folder, self.transform = folder, transform
        self._is_mixed = folder.parts[0] is not folder
        self.seed, self.patch_size = seed, patch_size
        self.limit, self.skip_bad, self.fast_decode = limit, skip_bad, fast_decode
        self.known_bad: list[BadSample] = []
        self.label_counts: dict[str, npt.NDArray[np.int64]] = {}
        self.value_ranges: dict[str, tuple[float, float]] = {}
        self.tops: dict[str, list[float]] = {}

    def __len__(self) -> int:
        """Number of samples."""
        return min(len(self.folder), self.limit or len(self.folder))

    def __getitem__(self, key: SampleKey) -> Sample | BadSample:
        """Sample ``key.index`` with the augmentation of ``key.epoch``.

        Raises:
            UserError: A file of the sample is bad; the message names it. Not with ``skip_bad``.
        """
        index = self._folder_index(key.index)
        pixels, problems = self._read(index)
        if not problems:
            try:
                with sample_rng(self.seed, key):
                    images = self.transform(pixels)
                absent = tuple(m.name for m in self.folder.modalities if m.name not in pixels)
                return Sample(images, self.folder.name(index), absent)
            except ImageError as err:  # of a photo that is decoded by the transform
                problems = [str(err)]
        if self.skip_bad:
            return BadSample(self.folder.name(index), " ".join(problems))
        raise UserError(problems[0])

    def __getitems__(self, keys: Sequence[SampleKey]) -> Samples:
        """Samples of a batch, and the shared-memory block of their keys."""
        samples = Samples()
        for i, key in enumerate(keys):
            if i % PREFETCH == 0:
                coming = [self._folder_index(k.index) for k in keys[i : i + PREFETCH]]
                self.folder.prefetch(coming)
            samples.append(self[key])
        samples.block = getattr(keys, "block", None)
        return samples

    @cached_property
    def parts(self) -> tuple[MultiModalDataset, ...]:
        """This set, or that of each data root of a mix, for statistics and warnings."""
        folders = self.folder.parts
        return tuple(map(self._part, folders)) if self._is_mixed else (self,)

    def _part(self, folder: MultiModalFolder) -> MultiModalDataset:
        part = copy(self)
        part.folder, part._is_mixed = folder, False
        part.label_counts, part.value_ranges, part.tops = {}, {}, {}
        return part

    def sampler(self, *args: Any, **options: Any) -> GlobalBatchSampler:
        """Sampler of training batches; arguments of :class:`GlobalBatchSampler`."""
        if not self._is_mixed:
            return GlobalBatchSampler(*args, **options)
        from utils.data.mixing import mixed_sampler

        return mixed_sampler(self, *args, **options)

    def name(self, index: int) -> str:
        """``sub-folder/name`` of a sample."""
        return self.folder.name(self._folder_index(index))

    def fingerprint(self) -> dict[str, object]:
        """Number and digest of the sample names, for checkpoints."""
        if len(self) == len(self.folder):
            return {"count": len(self), "digest": self.folder.digest}
        digest = blake2b(digest_size=16)
        for index in range(len(self)):
            digest.update(os.fsencode(self.name(index)) + b"\0")
        return {"count": len(self), "digest": digest.hexdigest()}

    def spread(self, count: int) -> list[int]:
        """Indices of at most ``count`` evenly spaced samples; of a mix, by the folders' shares."""
        return self.folder.spread(count) if self._is_mixed else spread_indices(len(self), count)

    def has(self, index: int, modality: Modality) -> bool:
        """Whether a sample has a file of a modality."""
        return self.folder.has(self._folder_index(index), modality)

    def check(self, index: int) -> CheckedSample:
        """Read a sample; its values are described if it is good."""
        pixels, problems = self._read(self._folder_index(index), thorough=True)
        checked = CheckedSample(problems, {}, {})
        for m in self.folder.modalities if not problems else ():
            if m.is_labels and m.name in pixels:
                checked.label_counts[m.name] = np.bincount(np.asarray(pixels[m.name]).reshape(-1))
            elif m.plot == "scalar" and m.name in pixels:
                values = np.asarray(pixels[m.name])
                values = values[(values > 0) & np.isfinite(values) & (values != m.no_data)]
                found = (float(values.min()), float(values.max())) if values.size else None
                checked.value_ranges[m.name] = found
        return checked

    def count(self, checked: CheckedSample) -> None:
        """Add a sample to the statistics of the checked samples."""
        for name, counts in checked.label_counts.items():
            total = self.label_counts.setdefault(name, np.zeros(65536, np.int64))
            total[: len(counts)] += counts
        for name, found in checked.value_ranges.items():
            self.tops.setdefault(name, []).append(found[1] if found else 0.0)
            if found is None:
                continue
            least, most = found
            low, high = self.value_ranges.get(name, (np.inf, -np.inf))
            self.value_ranges[name] = min(low, least), max(high, most)

    def _folder_index(self, index: int) -> int:
        """Index in the folder of a sample of this set."""
        if self._is_mixed:
            return index % len(self.folder)  # later rounds have larger indices
        return index * len(self.folder) // len(self)

    def _read(self, index: int, thorough: bool = False) -> tuple[dict[str, Pixels], list[str]]:
        """Pixels of all modalities of a sample of the folder, and problems with them.

        ``thorough``: decode everything immediately.
        """
        fast = self.fast_decode and not thorough
        pixels: dict[str, Pixels] = {}
        problems: list[str] = []
        for m in self.folder.modalities:
            if not self.folder.has(index, m):
                continue
            try:
                pixels[m.name] = self.folder.read(index, m, self.patch_size, fast=fast)
            except ImageError as err:
                problems.append(str(err))
        try:
            if not problems:
                check_same_view(pixels, self.folder.files(index))
        except ImageError as err:
            problems.append(str(err))
        return pixels, problems


def check_samples(dataset: MultiModalDataset, count: int, max_bad: int = 0) -> list[BadSample]:
    """Read up to ``count`` evenly spaced samples to find bad files before training.

    Args:
        dataset: Data set to read, in threads; its ``known_bad`` and the statistics of its ``parts``
            are set.
        count: Number of samples to read.
        max_bad: Number of bad samples allowed in a set with ``skip_bad``.

    Returns:
        For a set with ``skip_bad``: samples that lack a file, and bad ones among those read.

    Raises:
        UserError: Lists every bad file; for a set with ``skip_bad`` only if more than ``max_bad``
            samples are bad.
    """
    total, root = len(dataset), dataset.folder.root
    indices = dataset.spread(count)
    found = {}
    with ThreadPoolExecutor(_CHECK_THREADS) as pool:
        for i, checked in zip(indices, pool.map(dataset.check, indices), strict=True):
            dataset.parts[dataset.folder.part_of(i)].count(checked)
            if checked.problems:
                found[i] = checked.problems
    if not dataset.skip_bad:
        problems = [p for of_sample in found.values() for p in of_sample]
        if problems:
            raise UserError(
                f"{len(problems)} bad files among {len(indices)} of {total} samples checked in "
                f"{root}:\n{bullet_list(problems)}"
            )
        return []
    bad = [BadSample(str(path), problem) for path, problem in dataset.folder.incomplete]
    bad += [BadSample(dataset.name(i), " ".join(problems)) for i, problems in found.items()]
    if len(bad) > max_bad:
        raise UserError(
            f"{len(bad)} bad samples in {root} ({len(dataset.folder.incomplete)} lack a file, "
            f"{len(found)} of {len(indices)} read cannot be used), more than max_bad_samples "
            f"{max_bad}:\n{bullet_list([b.problem for b in bad])}\n"
            "Fix the files, or raise --max_bad_samples."
        )
    dataset.known_bad = bad
    return bad


def build_loader(
    dataset: MultiModalDataset,
    sampler: GlobalBatchSampler | EvalBatchSampler,
    *,
    num_workers: int,
    pin_memory: bool,
    prefetch_factor: int = 2,
    num_held: int = 1,
) -> DataLoader[Any]:
    """Build the loader of the batches (:class:`Batch`) that ``sampler`` selects.

    Args:
        dataset: Samples.
        sampler: Order of the samples, and the shard of this rank.
        num_workers: Worker processes, persistent across epochs; 0 decodes in this process. Batches
            are the same for any number.
        pin_memory: Copy batches to page-locked memory, for faster copies to a GPU.
        prefetch_factor: Batches that each worker prepares ahead.
        num_held: Batches in use at a time. Holding more is correct, but slower.
    """
    workers: dict[str, Any] = {}
    batches: Sampler[list[SampleKey]] = sampler
    reuse_pillow_memory()
    if num_workers:
        from utils.data.shared_memory import PooledBatchSampler, SharedMemoryPool

        # Batches that workers are preparing or have ready, that training holds, and the next ones.
        count = num_workers * prefetch_factor + 2 * num_held
        pool = SharedMemoryPool(count, sampler.batch_size * dataset.transform.sample_bytes())
        batches = PooledBatchSampler(sampler, pool)
        atexit.register(end_workers)  # for callers that are not scripts
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
        collate_fn=dataset.transform.collate,
        # Every iterator draws a base seed; this generator spares the global one.
        generator=torch.Generator(),
        **workers,
    )
