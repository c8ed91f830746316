"""Semantic segmentation: batch -> loss, scores and pictures."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from multimae.images.preprocess import prepare_padded
from multimae.multimae import MultiViT
from multimae.plotting.pictures import to_picture, with_void
from multimae.plotting.predictions import prediction_grid
from multimae.specs.modalities import Modality
from utils.data.batches import Batch
from utils.data.dense_transforms import INSIDE
from utils.data.sets.label_maps import IGNORE
from utils.distributed.world import World
from utils.logs.logger import RunLogger
from utils.tasks.base import Pictures, StepOutput, StepPosition
from utils.tasks.finetuning import FinetuneTask
from utils.tasks.scoring import predictions
from utils.training.metrics import MeanMeter, SegmentationMeter
from utils.training.precision import Precision

HEAD = "semseg"


class SegmentTask(FinetuneTask):
    """One head of class logits; cross-entropy on pixels that are neither void nor padding."""

    def __init__(
        self,
        model: MultiViT,
        inputs: Sequence[Modality],
        target: Modality,
        *,
        zero_is_void: bool,
        learn_void: bool = False,
        valid_name: str | None = None,
    ) -> None:
        """Describe the label maps.

        Args:
            model: Its head ``semseg`` predicts ``target.num_classes`` classes, and void if
                ``learn_void``.
            inputs: Rows of the inputs.
            target: Row of the label maps, with the predicted classes.
            zero_is_void: Stored label 0 is void and the others count from 1.
            learn_void: Void is one more class in the loss.
            valid_name: Row of the map that says where scalar inputs are valid.
        """
        super().__init__(model, inputs)
        self.target, self.valid_name = target, valid_name
        self.zero_is_void, self.learn_void = zero_is_void, learn_void

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Model inputs: padding is class K in label maps, 0 (after scaling) in scalar maps."""
        inside = batch.images[INSIDE]
        valid = inside
        if self.valid_name is not None:
            valid = inside & (batch.images[self.valid_name][:, 0] > 127)
        return prepare_padded(batch.images, self.inputs, inside, valid)

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Class ids (B, H, W), void and padding ``IGNORE``; and where void was stored."""
        stored = batch.images[self.target.name].long()
        inside = batch.images[INSIDE]
        void = stored == IGNORE
        if self.zero_is_void:
            void |= stored == 0
            stored = stored - 1
        return stored.masked_fill(void | ~inside, IGNORE), void & inside

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Cross-entropy; no labelled pixel gives 0 that keeps the graph."""
        labels, void = self.labels(batch)
        loss = self.loss(self.predict(self.prepare(batch))[HEAD], labels, void)
        return StepOutput(loss, {})

    def loss(self, logits: Tensor, labels: Tensor, void: Tensor) -> Tensor:
        """Mean cross-entropy over labelled pixels of logits (B, K, H, W)."""
        labels = self._learned(labels, void)
        total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
        return total / (labels != IGNORE).sum().clamp_min(1)

    def pixel_losses(self, logits: Tensor, labels: Tensor, void: Tensor) -> Tensor:
        """Cross-entropy of every labelled pixel, flat."""
        labels = self._learned(labels, void)
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
        return losses[labels != IGNORE]

    def _learned(self, labels: Tensor, void: Tensor) -> Tensor:
        """Labels as the loss sees them: void is a class of its own if it is learnt."""
        return labels.masked_fill(void, self.target.num_classes) if self.learn_void else labels


class SegmentationEvaluator:
    """Confusion matrix over a whole set: mIoU, accuracies, a table per class."""

    def __init__(
        self,
        task: SegmentTask,
        loader: DataLoader[Any],
        world: World,
        precision: Precision,
        split: str,
        output_dir: str = "",
    ) -> None:
        """Score ``loader``; the table goes to ``output_dir/{split}_classes.csv``."""
        self.task, self.loader, self.world = task, loader, world
        self.precision, self.split = precision, split
        self.table = Path(output_dir) / f"{split}_classes.csv" if output_dir else None

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """``{split}/mean_iou``, ``mean_accuracy`` (percent), ``pixel_accuracy``, ``loss``."""
        target = self.task.target
        meter = SegmentationMeter(target.num_classes, IGNORE, self.world.device)
        mean = MeanMeter(["loss"], self.world.device)
        device = self.world.device
        for batch, outputs in predictions(self.task, model, self.loader, self.precision, device):
            logits, (labels, void) = outputs[HEAD], self.task.labels(batch)
            mean.update({"loss": self.task.pixel_losses(logits, labels, void)})
            meter.update(logits[:, : target.num_classes].argmax(dim=1), labels)
        for each in (meter, mean):
            each.load(self.world.sum(each.state()))
        if self.table is not None and self.world.is_main:
            write_class_table(self.table, meter, target)
        values = {**meter.compute(), **mean.compute()}
        return {f"{self.split}/{name}": value for name, value in values.items()}


def write_class_table(path: Path, meter: SegmentationMeter, target: Modality) -> None:
    """IoU, accuracy and pixels of every class as CSV; empty where a class does not occur."""
    iou, accuracy = (values.tolist() for values in meter.per_class())
    pixels = meter.confusion.sum(dim=1).tolist()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "iou", "accuracy", "pixels"])
        for i in range(target.num_classes):
            name = target.class_names[i] if target.class_names else ""
            scores = ["" if math.isnan(v) else f"{v:.4f}" for v in (iou[i], accuracy[i])]
            writer.writerow([i, name, *scores, int(pixels[i])])


class SegmentationPictures(Pictures):
    """Draws inputs, predicted and true classes of a fixed batch."""

    def __init__(
        self, task: SegmentTask, batch: Batch, precision: Precision, device: torch.device,
        split: str, logger: RunLogger,
    ) -> None:  # fmt: skip
        """Draw ``batch``."""
        self.task, self.batch, self.logger = task, batch, logger
        self.precision, self.device, self.split = precision, device, split

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Send the picture to the logger; no numbers."""
        batch = self.batch.to(self.device)
        x = self.task.prepare(batch)
        labels, _ = self.task.labels(batch)
        with self.precision.autocast():
            logits = self.task.predict(x, model)[HEAD]
        shown = with_void(self.task.target)
        guess = logits[:, : self.task.target.num_classes].argmax(dim=1) + 1
        truth = torch.where(labels == IGNORE, 0, labels + 1)
        columns: Mapping[str, Any] = {
            **{m.name: [to_picture(row, m) for row in x[m.name]] for m in self.task.inputs},
            "prediction": [to_picture(row, shown) for row in guess],
            "truth": [to_picture(row, shown) for row in truth],
        }
        ids = torch.cat([guess.flatten(), truth.flatten()]).cpu().numpy()
        grid = prediction_grid(columns, captions=batch.names, legend=shown, ids=ids)
        self.logger.picture(f"predictions_{self.split}", step, grid)
        return {}
