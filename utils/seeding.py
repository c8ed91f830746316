"""Random numbers as functions of position, not of history.

Everything random in a run is seeded from (seed, where we are): augmentation from (epoch, sample),
masks from the step, dropout from the step and rank. A resumed run therefore needs no saved
generator states to continue exactly.
"""

from __future__ import annotations

import random
import struct
from hashlib import blake2b

import numpy as np
import torch


def mix_seed(*numbers: int) -> int:
    """64 well-mixed bits from signed 64-bit integers: nearby inputs give unrelated seeds."""
    data = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)


def seed_everything(*numbers: int) -> None:
    """Seed python, numpy and torch (all devices) from the mixed ``numbers``.

    numpy's global generator is seeded because timm's Mixup draws from it.
    """
    seed = mix_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    torch.manual_seed(seed)


def generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """A generator on ``device`` seeded from the mixed ``numbers``."""
    return torch.Generator(device).manual_seed(mix_seed(*numbers))
