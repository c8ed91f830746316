"""Random numbers as functions of position, not of history.

Everything random in a run is seeded from (seed, where we are): augmentation from (epoch, sample),
masks from the step, dropout from the step and rank. A run that goes on therefore needs no saved
generator states; checkpoints hold them all the same, for whatever code of a user draws from them.
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


def rng_state() -> dict[str, Any]:
    """States of python's, numpy's and torch's generators (of all devices) as plain values."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    words_64 = torch.from_numpy(np.asarray(keys).astype(np.int64))
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), words_64, place, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def load_rng_state(state: Mapping[str, Any]) -> None:
    """Inverse of :func:`rng_state`; of other devices than those saved nothing is changed."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, place, has_gauss, cached = state["numpy"]
    words_32 = keys.numpy().astype(np.uint32)
    np.random.set_state((kind, words_32, place, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
