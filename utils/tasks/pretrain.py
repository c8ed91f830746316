"""Pre-training: masked reconstruction of every output modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multimae.balancing import NoWeightingStrategy, UncertaintyWeightingStrategy
from multimae.criterion import MaskedLoss, build_loss
from multimae.masking import TokenMasks, sample_masks
from multimae.modalities import Modality
from multimae.multimae import MultiMAE
from multimae.preprocess import prepare
from multimae.tokens import TokenLayout
from utils.data.loaders import Batch
from utils.seeding import generator
from utils.tasks.base import StepOutput, StepPosition, Task


@dataclass(frozen=True)
class MaskOptions:
    """How masks are drawn (SPEC section 2)."""

    num_visible: int
    alphas: float = 1.0
    sample_tasks_uniformly: bool = False
    seed: int = 0

    def draw(
        self,
        layout: TokenLayout,
        position: StepPosition,
        size: int,
        device: torch.device,
        rows: Sequence[int] | None = None,
    ) -> TokenMasks:
        """Masks of ``size`` samples at ``position``, however samples are split over processes.

        Every process draws for the whole update and keeps its own rows: the noise costs little,
        and no state needs saving. Of these ``rows`` are returned, if they are given: a sample has
        the same masks whether or not others of its batch are bad.
        """
        drawn = sample_masks(
            layout,
            position.num_rows,
            self.num_visible,
            self.alphas,
            self.sample_tasks_uniformly,
            generator(device, self.seed, position.step),
            device,
            rows=(position.first_row, position.first_row + size),
        )
        return drawn if rows is None else drawn.take(rows)


class PretrainTask(Task):
    """MultiMAE, one loss per output modality, and their balance."""

    model: MultiMAE

    def __init__(
        self,
        model: MultiMAE,
        inputs: Sequence[Modality],
        outputs: Sequence[Modality],
        patch_size: int,
        masks: MaskOptions,
        *,
        balancer: str = "none",
        loss_on_unmasked: bool = False,
        fp32_output_adapters: Sequence[str] = (),
    ) -> None:
        """Build losses from the table's rows.

        Args:
            model: With one output adapter per row of ``outputs``.
            inputs: What the encoder may see.
            outputs: What is predicted.
            patch_size: Patch side where a row names none.
            masks: How masks are drawn.
            balancer: ``none`` or ``uncertainty``.
            loss_on_unmasked: Count visible patches, too.
            fp32_output_adapters: Outputs decoded in float32.
        """
        super().__init__()
        self.model = model
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.rows = tuple(dict.fromkeys((*inputs, *outputs)))
        self.masks, self.patch_size = masks, patch_size
        self.losses: dict[str, MaskedLoss] = {m.name: build_loss(m, patch_size) for m in outputs}
        names = [m.name for m in outputs]
        self.balancer: nn.Module = (
            UncertaintyWeightingStrategy(names)
            if balancer == "uncertainty"
            else NoWeightingStrategy()
        )
        self.loss_on_unmasked = loss_on_unmasked
        self.fp32_output_adapters = tuple(fp32_output_adapters)
        self._compute = self.compute_losses

    def compile_step(self, **options: Any) -> None:
        """Compile model and losses, options as for ``torch.compile``.

        Masks are drawn outside: what is compiled sees tensors whose shapes no draw changes.
        """
        self._compute = torch.compile(self.compute_losses, **options)

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Balanced sum of the masked losses; logs ``loss/{modality}`` before weighting."""
        x = prepare(batch.images, self.rows)
        device = next(iter(x.values())).device
        layout = self.model.layout_of({m.name: x[m.name] for m in self.inputs})
        masks = self.masks.draw(layout, position, batch.whole_size, device, batch.rows)
        losses = self._compute(x, masks)
        weighted = self.balancer(losses)
        total = torch.stack([m.loss_weight * weighted[m.name] for m in self.outputs]).sum()
        return StepOutput(total, {f"loss/{n}": v.detach() for n, v in losses.items()})

    def compute_losses(self, x: Mapping[str, Tensor], masks: TokenMasks) -> dict[str, Tensor]:
        """Masked loss of every output; ``x`` as :func:`multimae.preprocess.prepare` gives it."""
        out = self.model.forward_patches(
            {m.name: x[m.name] for m in self.inputs}, lambda _: masks, self.fp32_output_adapters
        )
        losses = {}
        for m in self.outputs:
            mask = None if self.loss_on_unmasked else masks.task_masks.get(m.data_name)
            losses[m.name] = self.losses[m.name].from_patches(out.patches[m.name], x[m.name], mask)
        return losses
