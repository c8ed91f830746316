"""Exponential moving average (EMA) of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.optim.swa_utils import AveragedModel

from utils.config.options import StartOptions


def average(model: nn.Module, options: StartOptions) -> AveragedModel:
    """Build the EMA of the weights and buffers of ``model``."""
    decay = options.model_ema_decay
    if options.model_ema_force_cpu:
        # Foreach kernels need all tensors on one device.
        average_one = swa_utils.get_ema_avg_fn(decay)  # type: ignore[no-untyped-call]
        return AveragedModel(model, torch.device("cpu"), avg_fn=average_one, use_buffers=True)
    average_many = swa_utils.get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: object) -> None:
        average_many([_local_shard(t) for t in averaged], [_local_shard(t) for t in current], count)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _local_shard(tensor: Tensor) -> Tensor:
    """Local shard of a DTensor; other tensors are returned unchanged."""
    local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if local is None else local()
