"""Stateless seeding: random numbers depend on the position in the run, not on earlier draws.

Augmentation is seeded from (seed, epoch, sample), masks from (seed, step), dropout from (seed,
step, rank). Resuming therefore needs no generator states. Checkpoints store them for user code that
draws without seeding.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from multimae.nn.masking import MaskNoise, TokenMasks, draw_noise, masks_from_noise
from multimae.nn.tokens import TokenLayout

if TYPE_CHECKING:
    from utils.tasks.base import StepPosition


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


@dataclass(frozen=True)
class MaskOptions:
    """Mask sampling options (SPEC section 2)."""

    num_encoded_tokens: int
    alphas: float = 1.0
    sample_tasks_uniformly: bool = False
    seed: int = 0

    def draw(
        self,
        layout: TokenLayout,
        position: StepPosition,
        size: int,
        device: torch.device,
        kept: Sequence[int] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> TokenMasks:
        """Draw the masks of a batch; ``present``: as for ``sample_masks``, of good samples."""
        drawn = self.draw_noise(layout, position, size, device, kept)
        return masks_from_noise(drawn, layout, self.num_encoded_tokens, present)

    def draw_noise(
        self,
        layout: TokenLayout,
        position: StepPosition,
        size: int,
        device: torch.device,
        kept: Sequence[int] | None = None,
    ) -> MaskNoise:
        """Draw the random numbers of a batch's masks, which depend on its position alone.

        Every rank draws for the global batch and selects its samples: cheap, and without generator
        states in checkpoints.

        Args:
            layout: Layout of the full sequence.
            position: Position of the batch in the run.
            size: Number of samples in the batch, including bad ones.
            device: Device to draw on.
            kept: Indices of the good samples in the batch; ``None``: all.
        """
        uniformly, seeded = self.sample_tasks_uniformly, generator(device, self.seed, position.step)
        count, total = self.num_encoded_tokens, position.num_samples
        drawn = draw_noise(layout, total, count, self.alphas, uniformly, seeded, device)
        drawn = drawn.take(slice(position.first_sample, position.first_sample + size))
        return drawn if kept is None else drawn.take(kept)
