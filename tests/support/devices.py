"""Devices of numeric tests: the CPU, and a GPU if available."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]

torch.backends.cudnn.allow_tf32 = False  # as --precision fp32 does


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """On a GPU, an error where the host waits for it, as the driver's calls tell."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
