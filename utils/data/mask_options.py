"""How masks are drawn in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multimae.nn.masking import MaskNoise, TokenMasks, draw_noise, masks_from_noise
from multimae.nn.tokens import TokenLayout
from utils.training.seeding import generator

if TYPE_CHECKING:
    from utils.tasks.base import StepPosition


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
