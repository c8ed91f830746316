"""Pre-training: masked reconstruction of every output modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from multimae.criterion import MaskedLoss, build_loss, mean_over_counted
from multimae.images.preprocess import pixels_with_value, prepare
from multimae.multimae import MultiMAE
from multimae.nn.balancing import NoWeightingStrategy, UncertaintyWeightingStrategy
from multimae.nn.masking import TokenMasks, sample_masks
from multimae.nn.partial_targets import per_sample_where, without_absent
from multimae.nn.tokens import TokenLayout
from multimae.specs.modalities import Modality
from utils.data.batches import Batch
from utils.tasks.base import StepOutput, StepPosition, Task
from utils.training.seeding import generator


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
        present: Mapping[str, Tensor] | None = None,
    ) -> TokenMasks:
        """Masks of ``size`` samples at ``position``, however samples are split over processes.

        Every process draws for the whole update and keeps its own rows: the noise costs little,
        and no state needs saving. Of these ``rows`` are returned, if they are given: a sample has
        the same masks whether or not others of its batch are bad. ``present`` says which of them
        have a modality, where some do not.
        """
        if present and rows is not None:
            present = {name: _at(rows, there, size) for name, there in present.items()}
        drawn = sample_masks(
            layout,
            position.num_rows,
            self.num_visible,
            self.alphas,
            self.sample_tasks_uniformly,
            generator(device, self.seed, position.step),
            device,
            rows=(position.first_row, position.first_row + size),
            present=present,
        )
        return drawn if rows is None else drawn.take(rows)


def _at(rows: Sequence[int], there: Tensor, size: int) -> Tensor:
    """(size,) flags of a whole batch from those of some of its rows; True elsewhere."""
    whole = torch.ones(size, dtype=torch.bool, device=there.device)
    whole[torch.tensor(rows, dtype=torch.long, device=there.device)] = there
    return whole


@dataclass(frozen=True)
class Targets:
    """What the encoder may see and the decoders are compared with, in model space.

    Attributes:
        x: By row.
        valid: Where pixels have a value, by the name of the stored modality; of rows with
            ``no_data`` alone.
        present: Which samples have the modality, (B,) bool; of those that some sample lacks.
    """

    x: dict[str, Tensor]
    valid: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch, rows: Sequence[Modality]) -> Targets:
        """Of a batch, on its device."""
        valid = {
            m.name: where
            for m in rows
            if m.source is None
            and (where := pixels_with_value(batch.images[m.name], m)) is not None
        }
        return cls(prepare(batch.images, rows), valid, batch.present)


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
        targets = Targets.of(batch, self.rows)
        device = next(iter(targets.x.values())).device
        layout = self.model.layout_of({m.name: targets.x[m.name] for m in self.inputs})
        masks = self.masks.draw(
            layout, position, batch.full_size, device, batch.sample_indices, batch.present
        )
        losses = self._compute(targets, masks)
        weighted = self.balancer(losses)
        total = torch.stack([m.loss_weight * weighted[m.name] for m in self.outputs]).sum()
        return StepOutput(total, {f"loss/{n}": v.detach() for n, v in losses.items()})

    def per_sample(
        self, m: Modality, pred_bnp: Tensor, targets: Targets, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss (B,) of every sample, and whether it counts (B,).

        Args:
            m: An output.
            pred_bnp: Its prediction as patch vectors.
            targets: The truth.
            mask: (B, N), 1 = counted; ``None`` counts every patch.
        """
        loss, target = self.losses[m.name], targets.x[m.name]
        present, valid = targets.present.get(m.data_name), targets.valid.get(m.data_name)
        if present is not None:
            mask = torch.ones_like(pred_bnp[..., 0]) if mask is None else mask
            mask = without_absent(mask, present)
        if valid is not None:
            return per_sample_where(loss, pred_bnp, target, valid, mask)
        return loss.per_sample(pred_bnp, target, mask)

    def compute_losses(self, targets: Targets, masks: TokenMasks) -> dict[str, Tensor]:
        """Masked loss of every output."""
        out = self.model.forward_patches(
            {m.name: targets.x[m.name] for m in self.inputs},
            lambda _: masks,
            self.fp32_output_adapters,
        )
        losses = {}
        for m in self.outputs:
            mask = None if self.loss_on_unmasked else masks.task_masks.get(m.data_name)
            per_sample = self.per_sample(m, out.patches[m.name], targets, mask)
            losses[m.name] = mean_over_counted(*per_sample)
        return losses
