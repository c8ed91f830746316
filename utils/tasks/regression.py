"""Dense regression, shared by depth and Taskonomy: losses, metrics, pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor, nn

from multimae.inference.truth import L1Scores, normalized_target, with_mean
from multimae.multimae import MultiViT
from multimae.nn.valid_losses import masked_berhu_loss, masked_l1_loss, masked_mse_loss
from multimae.plotting.colours import Picture
from multimae.plotting.pictures import colour_range, to_picture
from multimae.plotting.predictions import prediction_grid
from multimae.specs.heads import HeadOptions, HeadSpec
from multimae.specs.modalities import Modality
from utils.data.batches import Batch
from utils.tasks.base import StepOutput, StepPosition
from utils.tasks.finetuning import FinetuneTask, PredictionPictures, SplitEvaluator

RegressionLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
LOSSES: dict[str, RegressionLoss] = {
    "berhu": masked_berhu_loss,
    "l1": masked_l1_loss,
    "l2": masked_mse_loss,
    "mse": masked_mse_loss,
}


@dataclass(frozen=True)
class Target:
    """Regression target of a head.

    Attributes:
        head: Name of the head.
        modality: Modality of the files; values are clipped at ``max_value``.
        channels: Number of predicted channels, the first ones of the files.
        unit: Unit of predictions and pictures; empty: a scale from 0 to 1.
        scale: Values in ``unit`` per stored value.
        uses_mask_valid: Pixels count where ``mask_valid`` is set.
    """

    head: str
    modality: Modality
    channels: int
    unit: str = ""
    scale: float = 1.0
    uses_mask_valid: bool = False

    @property
    def predicted(self) -> Modality:
        """Modality with only the predicted channels."""
        m, few = self.modality, self.channels
        mean, std = (v[:few] if len(v) > 1 else v for v in (m.mean, m.std))
        across, along = (
            tuple(c for c in negated if c < few) for negated in (m.hflip_negate, m.vflip_negate)
        )
        return replace(
            m, num_channels=few, hflip_negate=across, vflip_negate=along, mean=mean, std=std
        )

    def head_spec(self, options: HeadOptions) -> HeadSpec:
        """Spec of the head."""
        return HeadSpec(
            self.head,
            self.predicted,
            self.channels,
            options,
            self.unit,
            self.scale,
            stored_channels=self.modality.num_channels,
            uses_mask_valid=self.uses_mask_valid,
        )

    def prepare(self, raw: Tensor) -> Tensor:
        """Normalised ground truth (B, channels, H, W)."""
        return normalized_target(raw, self.modality, self.predicted)

    def caption(self, truth: Tensor) -> str:
        """Describe the colour range of a scalar map; empty for other modalities."""
        if self.modality.plot != "scalar":
            return ""
        top = self.modality.max_value * self.scale if self.unit else 1.0
        low, high = (
            (v * self.modality.std[0] + self.modality.mean[0]) * top for v in colour_range(truth)
        )
        return f"{self.head}: dark {low:.2f}, bright {high:.2f} {self.unit}".rstrip()


class RegressionTask(FinetuneTask, ABC):
    """MultiViT with one head per target; the loss is the mean of the masked losses."""

    def __init__(
        self,
        model: MultiViT,
        inputs: Sequence[Modality],
        targets: Sequence[Target],
        loss: str,
    ) -> None:
        """Predict ``targets``; ``loss`` is a key of :data:`LOSSES`."""
        super().__init__(model, inputs)
        self.targets, self.loss = tuple(targets), LOSSES[loss]
        if len(self.targets) > 1:
            self.loss_names = tuple(f"loss/{target.head}" for target in self.targets)

    @abstractmethod
    def valid(self, batch: Batch) -> Tensor:
        """Bool (B, 1, H, W), pixels that count in losses and metrics."""

    def truth(self, batch: Batch) -> dict[str, Tensor]:
        """Normalised ground truth by head."""
        return {t.head: t.prepare(batch.images[t.modality.name]) for t in self.targets}

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Mean loss over heads; several heads are also logged as ``loss/{head}``."""
        return self._losses(batch, position.counts)

    def _losses(self, batch: Batch, counts_t: Tensor | None) -> StepOutput:
        truth, valid = self.truth(batch), self.valid(batch)
        preds = self.predict(self.prepare(batch))
        counts = [None] * len(truth) if counts_t is None else counts_t.unbind()
        losses = {
            name: self.loss(preds[name].float(), target, valid, count)
            for (name, target), count in zip(truth.items(), counts, strict=True)
        }
        several = losses if len(losses) > 1 else {}
        logs = {f"loss/{name}": value.detach() for name, value in several.items()}
        return StepOutput(torch.stack(list(losses.values())).mean(), logs)

    def count(self, batch: Batch, position: StepPosition) -> Tensor:
        """Number of valid values per head."""
        return self._count(batch)

    def _count(self, batch: Batch) -> Tensor:
        pixels = self.valid(batch).sum()
        return torch.stack([pixels * target.channels for target in self.targets])


class L1Evaluator(SplitEvaluator[RegressionTask]):
    """Mean absolute error of every head over all valid pixels of a split, in normalised units."""

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """``{split}/l1/{head}`` and their mean ``{split}/l1``."""
        scores = L1Scores([t.head for t in self.task.targets], self.world.device)
        for batch, preds in self.predictions(model):
            scores.update(preds, self.task.truth(batch), self.task.valid(batch))
        return with_mean(self.reduce(*scores.meters), f"{self.split}/")


class RegressionPictures(PredictionPictures[RegressionTask]):
    """Draws inputs, predictions and ground truth of every head for a fixed batch."""

    def draw(
        self, batch: Batch, inputs: Mapping[str, list[Picture]], outputs: Mapping[str, Tensor]
    ) -> Image.Image:
        """Compose the grid; captions give colour ranges."""
        targets, valid = self.task.targets, self.task.valid(batch)
        # Non-finite pixels are drawn grey and do not affect the colour range.
        truth = {k: t.masked_fill(~valid, torch.nan) for k, t in self.task.truth(batch).items()}
        columns = dict(inputs)
        for target in targets:
            head, drawn = target.head, target.predicted
            pairs = list(zip(outputs[head], truth[head], strict=True))
            title = "truth" if len(targets) == 1 else f"{head}: truth"
            columns[f"{head}: prediction"] = [to_picture(p, drawn, t) for p, t in pairs]
            columns[title] = [to_picture(t, drawn, t) for _, t in pairs]
        captions = [
            "   ".join(filter(None, [name, *(t.caption(truth[t.head][i]) for t in targets)]))
            for i, name in enumerate(batch.names)
        ]
        return prediction_grid(columns, captions=captions)
