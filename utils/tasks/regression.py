"""Dense regression: depth and the Taskonomy tasks. Batch -> losses, scores and pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from multimae.criterion import masked_berhu_loss, masked_l1_loss, masked_mse_loss
from multimae.images.preprocess import to_model_input
from multimae.multimae import MultiViT
from multimae.plotting.pictures import colour_range, to_picture
from multimae.plotting.predictions import prediction_grid
from multimae.specs.heads import HeadOptions, HeadSpec
from multimae.specs.modalities import Modality
from utils.data.batches import Batch
from utils.distributed.world import World
from utils.logs.logger import RunLogger
from utils.tasks.base import Pictures, StepOutput, StepPosition
from utils.tasks.finetuning import FinetuneTask
from utils.tasks.scoring import predictions
from utils.training.metrics import MeanMeter
from utils.training.precision import Precision

RegressionLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
LOSSES: dict[str, RegressionLoss] = {
    "berhu": masked_berhu_loss,
    "l1": masked_l1_loss,
    "l2": masked_mse_loss,
    "mse": masked_mse_loss,
}


@dataclass(frozen=True)
class Target:
    """What one head predicts.

    Attributes:
        head: Its name in the model.
        row: How the files are read and normalised; values above ``max_value`` count as that.
        channels: The first channels of the files that are predicted.
        unit: Of the stored values, for pictures; empty: they are shown on the scale 0 to 1.
    """

    head: str
    row: Modality
    channels: int
    unit: str = ""

    @property
    def shown(self) -> Modality:
        """The row as pictures need it: with the predicted channels only."""
        few = self.channels
        keep = {k: v[:few] if len(v) > 1 else v for k, v in self._statistics.items()}
        return replace(self.row, num_channels=few, hflip_negate=(), **keep)

    def head_spec(self, options: HeadOptions) -> HeadSpec:
        """The head that predicts it."""
        return HeadSpec(self.head, self.shown, self.channels, options, self.unit)

    @property
    def _statistics(self) -> dict[str, Any]:
        return {"mean": self.row.mean, "std": self.row.std}

    def prepare(self, raw: Tensor) -> Tensor:
        """Normalised truth (B, channels, H, W)."""
        x = to_model_input(raw, self.row)[:, : self.channels]
        top = [(1 - m) / s for m, s in zip(self.shown.mean, self.shown.std, strict=True)]
        return torch.minimum(x, x.new_tensor(top).view(-1, 1, 1))

    def scale(self, truth: Tensor) -> str:
        """What the darkest and the brightest colour of a picture stand for; empty for colours."""
        if self.row.plot != "scalar":
            return ""
        top = self.row.max_value if self.unit else 1.0
        low, high = ((v * self.row.std[0] + self.row.mean[0]) * top for v in colour_range(truth))
        digits = 0 if self.unit else 2
        return f"{self.head}: dark {low:.{digits}f}, bright {high:.{digits}f} {self.unit}".rstrip()


class RegressTask(FinetuneTask, ABC):
    """MultiViT with one head per target; the mean of the masked losses."""

    def __init__(
        self,
        model: MultiViT,
        inputs: Sequence[Modality],
        targets: Sequence[Target],
        loss: str,
    ) -> None:
        """Describe the targets; ``loss`` is a key of :data:`LOSSES`."""
        super().__init__(model, inputs)
        self.targets, self.loss = tuple(targets), LOSSES[loss]

    @abstractmethod
    def valid(self, batch: Batch) -> Tensor:
        """Bool (B, 1, H, W): the pixels that count."""

    def truth(self, batch: Batch) -> dict[str, Tensor]:
        """Normalised truth by head."""
        return {t.head: t.prepare(batch.images[t.row.name]) for t in self.targets}

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Mean over the heads; logs each as ``loss/{head}`` if there are several."""
        truth, valid = self.truth(batch), self.valid(batch)
        preds = self.predict(self.prepare(batch))
        losses = {
            name: self.loss(preds[name].float(), target, valid) for name, target in truth.items()
        }
        several = losses if len(losses) > 1 else {}
        logs = {f"loss/{name}": value.detach() for name, value in several.items()}
        return StepOutput(torch.stack(list(losses.values())).mean(), logs)


class L1Evaluator:
    """Mean absolute error of every head over all valid pixels of a set, in normalised units."""

    def __init__(
        self,
        task: RegressTask,
        loader: DataLoader[Any],
        world: World,
        precision: Precision,
        split: str,
    ) -> None:
        """Score ``loader``."""
        self.task, self.loader, self.world = task, loader, world
        self.precision, self.split = precision, split

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """``{split}/l1/{head}`` and their mean ``{split}/l1``."""
        meter = MeanMeter([t.head for t in self.task.targets], self.world.device)
        device = self.world.device
        for batch, preds in predictions(self.task, model, self.loader, self.precision, device):
            truth, valid = self.task.truth(batch), self.task.valid(batch)
            for name, target in truth.items():
                error = (preds[name] - target).abs().mean(dim=1, keepdim=True)
                meter.update({name: error[valid]})
        meter.load(self.world.sum(meter.state()))
        values = {f"{self.split}/l1/{name}": value for name, value in meter.compute().items()}
        return {**values, f"{self.split}/l1": sum(values.values()) / len(values)}


class RegressionPictures(Pictures):
    """Draws inputs, and prediction beside truth of every head, for a fixed batch."""

    def __init__(
        self, task: RegressTask, batch: Batch, precision: Precision, device: torch.device,
        split: str, logger: RunLogger,
    ) -> None:  # fmt: skip
        """Draw ``batch``."""
        self.task, self.batch, self.logger = task, batch, logger
        self.precision, self.device, self.split = precision, device, split

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Send the picture to the logger; no numbers."""
        batch = self.batch.to(self.device)
        x, valid = self.task.prepare(batch), self.task.valid(batch)
        # Pictures show what is not finite in grey, and leave it out of the scale.
        truth = {k: t.masked_fill(~valid, torch.nan) for k, t in self.task.truth(batch).items()}
        with self.precision.autocast():
            preds = self.task.predict(x, model)
        columns: Mapping[str, Any] = {
            m.name: [to_picture(row, m) for row in x[m.name]] for m in self.task.inputs
        }
        for target in self.task.targets:
            pairs = list(zip(preds[target.head].float(), truth[target.head], strict=True))
            columns = {
                **columns,
                f"{target.head}: prediction": [to_picture(p, target.shown, t) for p, t in pairs],
                "truth" if len(self.task.targets) == 1 else f"{target.head}: truth": [
                    to_picture(t, target.shown, t) for _, t in pairs
                ],
            }
        captions = [
            "   ".join(
                filter(None, [name, *(t.scale(truth[t.head][i]) for t in self.task.targets)])
            )
            for i, name in enumerate(batch.names)
        ]
        self.logger.picture(
            f"predictions_{self.split}", step, prediction_grid(columns, captions=captions)
        )
        return {}
