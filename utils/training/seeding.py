"""Stateless seeding: random numbers depend on the position in the run, not on earlier draws.

Augmentation is seeded from (seed, epoch, sample), masks from (seed, step), dropout from (seed,
step, rank). Resuming therefore needs no generator states. Checkpoints store them for user code that
draws without seeding.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import torch


def mix_seed(*numbers: int) -> int:
    """Hash signed 64-bit integers to a 64-bit seed."""
    data = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and torch (all devices) from ``numbers``.

    NumPy's global generator is used by timm's Mixup.
    """
    seed = mix_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    torch.manual_seed(seed)


def generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """Create a generator on ``device``, seeded from ``numbers``."""
    return torch.Generator(device).manual_seed(mix_seed(*numbers))


def rng_state() -> dict[str, Any]:
    """States of the Python, NumPy and torch generators (all devices), as plain values."""
    version, internal, gauss = random.getstate()
    kind, keys, pos, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    keys_64 = torch.from_numpy(np.asarray(keys).astype(np.int64))
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(kind), keys_64, pos, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def load_rng_state(state: Mapping[str, Any]) -> None:
    """Inverse of :func:`rng_state`; CUDA states need the same number of devices."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, pos, has_gauss, cached = state["numpy"]
    keys_32 = keys.numpy().astype(np.uint32)
    np.random.set_state((kind, keys_32, pos, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
