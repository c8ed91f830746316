"""A running average of the weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import swa_utils
from torch.optim.swa_utils import AveragedModel

from utils.finetune_options import StartOptions


def average(model: nn.Module, options: StartOptions) -> AveragedModel:
    """Exponential moving average of the weights and buffers of ``model``."""
    decay = options.model_ema_decay
    if options.model_ema_force_cpu:
        # Parameter by parameter, as the kernels over lists need one device.
        one = swa_utils.get_ema_avg_fn(decay)  # type: ignore[no-untyped-call]
        return AveragedModel(model, torch.device("cpu"), avg_fn=one, use_buffers=True)
    many = swa_utils.get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=many, use_buffers=True)
