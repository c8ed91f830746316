"""The model behind the page: one for all visitors, one prediction at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multimae import CheckpointError, MultiMAE
from multimae.images.preprocess import prepare
from multimae.nn.masking import sample_masks
from multimae.specs.modalities import Modality
from tools.app.strokes import Array, Mask, patch_grid
from utils.logs.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """What the model makes of some visible patches.

    Attributes:
        outputs: ``(C, h, w)`` in model space, logits ``(K, h, w)`` for labels, by output.
        truth: The given images in model space, ids ``(h, w)`` for labels, by input.
        raw: The given images as stored, by input.
        visible: Masks by input.
        seconds: How long it took, waiting excluded.
    """

    outputs: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]
    raw: Mapping[str, Tensor]
    visible: Mapping[str, Mask]
    seconds: float


class Engine:
    """Draws visible patches and predicts the rest. Safe to share between threads."""

    def __init__(self, weights: Path) -> None:
        """Load a weight file that describes its model.

        Raises:
            UserError: It is missing, unreadable, or says nothing about its model.
        """
        try:
            self._model = MultiMAE.from_pretrained(weights)
        except (CheckpointError, OSError) as err:
            raise UserError(str(err)) from err
        self.spec = self._model.spec
        if not self.spec.outputs:
            raise UserError(f"{weights}: {self.spec.name} has no pre-training decoders to show")
        self._lock = threading.Lock()
        self.grids = {m.name: patch_grid(m, self.spec) for m in self.spec.inputs}

    @property
    def inputs(self) -> tuple[Modality, ...]:
        """Rows of the inputs."""
        return self.spec.inputs

    @property
    def outputs(self) -> tuple[Modality, ...]:
        """Rows of the outputs; without an input of that name there is no truth."""
        return self.spec.outputs

    @property
    def total(self) -> int:
        """Patches of all inputs."""
        return sum(rows * columns for rows, columns in self.grids.values())

    def draw(
        self,
        pixels: Mapping[str, Array],
        num_encoded_tokens: int,
        alphas: Mapping[str, float],
        seed: int,
    ) -> dict[str, Mask]:
        """Random visible patches of the given images.

        Args:
            pixels: Stored values by input.
            num_encoded_tokens: How many patches; all there are, if there are fewer.
            alphas: Dirichlet concentration by input.
            seed: The same seed gives the same patches.
        """
        rows = [m for m in self.inputs if m.name in pixels]
        layout = self._model.layout({m.name: pixels[m.name].shape[:2] for m in rows})
        num_encoded_tokens = min(max(1, num_encoded_tokens), layout.num_task_tokens)
        generator = torch.Generator().manual_seed(seed)
        masks = sample_masks(
            layout, 1, num_encoded_tokens, [alphas[m.name] for m in rows], generator=generator
        ).task_masks
        return {
            name: (mask[0] == 0).numpy().reshape(self.grids[name]) for name, mask in masks.items()
        }

    def predict(self, pixels: Mapping[str, Array], visible: Mapping[str, Mask]) -> Prediction:
        """All outputs from the visible patches.

        Args:
            pixels: Stored values by input, ``(h, w)`` or ``(h, w, C)``.
            visible: A mask for each of them.

        Raises:
            UserError: Nothing is visible.
        """
        if not any(mask.any() for mask in visible.values()):
            raise UserError("No patch is visible: reveal at least one, of any modality.")
        rows = [m for m in self.inputs if m.name in pixels]
        raw = {m.name: _batch(pixels[m.name], m) for m in rows}
        masks = {
            name: torch.from_numpy(~mask.ravel())[None].long() for name, mask in visible.items()
        }
        with self._lock, torch.inference_mode():
            start = time.perf_counter()
            truth = prepare(raw, rows)
            outputs, _ = self._model(truth, task_masks=masks)
            seconds = time.perf_counter() - start
        return Prediction(
            {name: out[0] for name, out in outputs.items()},
            {name: image[0] for name, image in truth.items()},
            raw,
            dict(visible),
            seconds,
        )


def _batch(pixels: Array, modality: Modality) -> Tensor:
    """A batch of one, channels first."""
    if not modality.is_labels:
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels))[None]
