"""Data sets and loaders of a run, built from its options."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from multimae.images.folders import MultiModalFolder
from utils.config.options import RunConfig
from utils.data.dataset import (
    MultiModalDataset,
    build_loader,
    check_samples,
)
from utils.data.samplers import EvalBatchSampler, GlobalBatchSampler, SampleKey
from utils.data.transforms import JointTransform
from utils.distributed.world import World

# Read before training: bad files must fail early, not during the first epoch.
# Read before training: bad files must fail early, not during the first epoch.
CHECKED_SAMPLES = 256

DatasetT = TypeVar("DatasetT", bound=MultiModalDataset)


def build_dataset(
    kind: type[DatasetT],
    cfg: RunConfig,
    folder: MultiModalFolder,
    transform: JointTransform,
    *,
    train: bool = False,
    limit: int | None = None,
    **options: Any,
) -> DatasetT:
    """Build a data set and check a few of its samples.

    Args:
        kind: Class of the data set.
        cfg: Configuration of the run.
        folder: Index of the files.
        transform: Joint transform of the folder's modalities.
        train: Apply the options ``on_bad_sample: skip`` and ``fast_decode``.
        limit: Maximum number of samples; ``None`` for all.
        **options: Further arguments of ``kind``.

    Raises:
        UserError: Unreadable samples that may not be skipped.
    """
    dataset = kind(
        folder,
        transform,
        seed=cfg.runtime.seed,
        patch_size=cfg.model.patch_size,
        limit=limit,
        skip_bad=train and cfg.data.skips_bad,
        fast_decode=train and cfg.data.fast_decode,
        **options,
    )
    if os.environ.get("RANK", "0") == "0":
        for line in folder.ignored_lines():
            print(line, flush=True)
    check_samples(dataset, CHECKED_SAMPLES, cfg.data.max_bad_samples)
    return dataset


def train_loader(
    cfg: RunConfig, dataset: MultiModalDataset, world: World
) -> tuple[DataLoader[Any], GlobalBatchSampler]:
    """Training loader of this rank, and its sampler."""
    sampler = GlobalBatchSampler(
        len(dataset),
        cfg.runtime.batch_size,
        rank=world.rank,
        world_size=world.size,
        seed=cfg.runtime.seed,
    )
    loader = build_loader(
        dataset,
        sampler,
        num_workers=cfg.data.num_workers,
        pin_memory=cfg.data.pin_mem,
        num_held=cfg.optim.update_freq,
    )
    return loader, sampler


def eval_loader(cfg: RunConfig, dataset: MultiModalDataset, world: World) -> DataLoader[Any]:
    """Evaluation loader of this rank; ranks get disjoint samples without padding."""
    sampler = EvalBatchSampler(
        len(dataset),
        cfg.data.eval_batch_size or cfg.runtime.batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    return build_loader(
        dataset, sampler, num_workers=cfg.data.num_workers, pin_memory=cfg.data.pin_mem
    )


def spread_keys(dataset: MultiModalDataset, count: int) -> list[SampleKey]:
    """Keys of at most ``count`` evenly spaced samples."""
    total = len(dataset)
    count = min(count, total)
    return [SampleKey(0, i * total // count) for i in range(count)]
