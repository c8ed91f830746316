"""A model behind the page, shared by all visitors; one call at a time."""

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
from multimae.images.preprocess import pixels_with_value, prepare
from multimae.nn.masking import sample_masks
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from tools.app.strokes import Array, Mask, patch_grid


@dataclass(frozen=True)
class Prediction:
    """The decoders' outputs for a set of visible patches.

    Attributes:
        outputs: ``(C, h, w)`` in model space, logits ``(K, h, w)`` for labels, by output.
        truth: Input images in model space, ids ``(h, w)`` for labels, by input; NaN, or id
            ``num_classes``, where a pixel has no value.
        raw: Input images as stored, by input.
        visible: Masks by input.
        seconds: Inference time, without waiting for the lock.
    """

    outputs: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]
    raw: Mapping[str, Tensor]
    visible: Mapping[str, Mask]
    seconds: float


class Engine:
    """A model with its spec. :meth:`draw` and :meth:`predict` need decoders. Thread-safe.

    Attributes:
        model: The model; hold ``lock`` while calling it.
        spec: Its spec.
        lock: Held during inference.
        grids: Rows and columns of patches by input.
    """

    def __init__(self, weights: Path) -> None:
        """Load weights with an embedded model spec.

        Raises:
            UserError: The file is missing, unreadable, or has neither decoders nor heads.
        """
        try:
            self.model = MultiMAE.from_pretrained(weights)
        except (CheckpointError, OSError) as err:
            raise UserError(str(err)) from err
        self.spec = self.model.spec
        if not self.spec.outputs and not self.spec.heads:
            raise UserError(f"{weights}: {self.spec.name} has neither decoders nor heads to show")
        self.lock = threading.Lock()
        self.grids = {m.name: patch_grid(m, self.spec) for m in self.spec.inputs}

    @property
    def inputs(self) -> tuple[Modality, ...]:
        """Specs of the inputs."""
        return self.spec.inputs

    @property
    def outputs(self) -> tuple[Modality, ...]:
        """Specs of the decoders' outputs. Ground truth exists where the input of that name does."""
        return self.spec.outputs

    def draw(
        self,
        pixels: Mapping[str, Array],
        num_encoded_tokens: int,
        alphas: Mapping[str, float],
        seed: int,
    ) -> dict[str, Mask]:
        """Sample visible patches.

        Args:
            pixels: Stored values by input.
            num_encoded_tokens: Number of visible patches, capped at all patches.
            alphas: Dirichlet concentration by input.
            seed: Seed of the sampling.
        """
        modalities = [m for m in self.inputs if m.name in pixels]
        layout = self.model.layout({m.name: pixels[m.name].shape[:2] for m in modalities})
        num_encoded_tokens = min(max(1, num_encoded_tokens), layout.num_task_tokens)
        generator = torch.Generator().manual_seed(seed)
        masks = sample_masks(
            layout, 1, num_encoded_tokens, [alphas[m.name] for m in modalities], generator=generator
        ).task_masks
        return {
            name: (mask[0] == 0).numpy().reshape(self.grids[name]) for name, mask in masks.items()
        }

    def predict(self, pixels: Mapping[str, Array], visible: Mapping[str, Mask]) -> Prediction:
        """Predict all outputs from the visible patches; none if nothing is visible.

        Args:
            pixels: Stored values by input, ``(h, w)`` or ``(h, w, C)``.
            visible: A mask per input in ``pixels``.
        """
        modalities = [m for m in self.inputs if m.name in pixels]
        raw = {m.name: _batch(pixels[m.name], m) for m in modalities}
        masks = {
            name: torch.from_numpy(~mask.ravel())[None].long() for name, mask in visible.items()
        }
        outputs: dict[str, Tensor] = {}
        with self.lock, torch.inference_mode():
            start = time.perf_counter()
            x = prepare(raw, modalities)
            if any(mask.any() for mask in visible.values()):
                outputs, _ = self.model(x, task_masks=masks)
            seconds = time.perf_counter() - start
        truth = {m.name: _truth(x[m.name], raw[m.name], m) for m in modalities}
        return Prediction(
            {name: out[0] for name, out in outputs.items()},
            truth,
            raw,
            dict(visible),
            seconds,
        )


def _truth(x: Tensor, raw: Tensor, modality: Modality) -> Tensor:
    """The image of a batch of one, NaN where it has no value; ids stay."""
    valid = None if modality.is_labels else pixels_with_value(raw, modality)
    return (x if valid is None else x.masked_fill(~valid, torch.nan))[0]


def _batch(pixels: Array, modality: Modality) -> Tensor:
    """Return a batch of one image, channels first."""
    if not modality.is_labels:
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels))[None]
