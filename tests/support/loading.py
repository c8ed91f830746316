"""Batches of a training loader."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from utils.data.dataset import MultiModalDataset, build_loader
from utils.data.samplers import GlobalBatchSampler

Batches = list[tuple[list[str], dict[str, Tensor]]]


def batches(data: MultiModalDataset, workers: int = 0, **shard: int) -> Batches:
    """Names and images of all batches of four of an epoch."""
    sampler = GlobalBatchSampler(len(data), 4, seed=3, **shard)
    loader = build_loader(data, sampler, num_workers=workers, pin_memory=False)
    iterator: Any = iter(loader)
    try:
        return [(b.names, {k: v.clone() for k, v in b.images.items()}) for b in iterator]
    finally:
        if workers:
            iterator._shutdown_workers()
