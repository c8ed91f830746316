"""Devices that options name."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def default_device() -> str:
    """``cuda`` if there is one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_problems(name: str) -> Iterator[str]:
    """A device that does not exist in PyTorch."""
    try:
        torch.device(name)
    except RuntimeError:
        yield f"device: '{name}' is not a device; use cuda, cuda:N, cpu or mps"
