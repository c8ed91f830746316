"""A running average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.optim.swa_utils import AveragedModel

from utils.config.options import StartOptions


def average(model: nn.Module, options: StartOptions) -> AveragedModel:
    """Exponential moving average of the weights and buffers of ``model``."""
    decay = options.model_ema_decay
    if options.model_ema_force_cpu:
        # Parameter by parameter, as the kernels over lists need one device.
        one = swa_utils.get_ema_avg_fn(decay)  # type: ignore[no-untyped-call]
        return AveragedModel(model, torch.device("cpu"), avg_fn=one, use_buffers=True)
    many = swa_utils.get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: object) -> None:
        many([_share(t) for t in averaged], [_share(t) for t in current], count)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _share(tensor: Tensor) -> Tensor:
    """This process's share of a sharded tensor: averaging shares needs no others."""
    local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if local is None else local()
