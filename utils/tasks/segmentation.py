"""Semantic segmentation: loss, mean IoU, pictures, and the setup of the script."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from multimae.criterion import mean_of_sum
from multimae.images.folders import CLASSES_FILE, MultiModalFolder, read_class_names
from multimae.images.inputs import prepare_padded
from multimae.images.no_data_tags import no_data_tag
from multimae.images.pack import AnyPath
from multimae.inference.metrics import SegmentationMeter
from multimae.inference.truth import (
    IGNORE,
    LabelScores,
    class_labels,
    mask_modality,
    stored_target,
    with_no_data,
)
from multimae.multimae import MultiViT
from multimae.plotting.colours import PADDING_GREY, Picture
from multimae.plotting.overlays import NO_CLASS, named_overlay, nearest
from multimae.plotting.pictures import to_picture, with_void
from multimae.plotting.predictions import prediction_grid
from multimae.specs.class_names import published_class_names
from multimae.specs.heads import HeadSpec
from multimae.specs.label_map import mapped_names, parse_label_map
from multimae.specs.modalities import Modality
from utils.checkpoint.trained_inputs import with_trained_options
from utils.config.finetune_options import Split
from utils.config.semseg_options import SegLoss, SemsegConfig
from utils.data.batches import Batch
from utils.data.dataset import MultiModalDataset
from utils.data.dense_transforms import INSIDE, SegEvalTransform, SegTrainTransform
from utils.data.sample_checks import LabelTable, label_tables
from utils.data.sets.class_weights import describe_weights, resolve_weights
from utils.data.sets.label_maps import (
    SegmentationDataset,
    check_classes,
    check_same_classes,
    reduced_class_names,
)
from utils.data.transforms import JointTransform
from utils.distributed.world import World
from utils.tasks.base import StepOutput, StepPosition
from utils.tasks.finetuning import (
    FinetuneTask,
    Finetuning,
    PredictionPictures,
    SplitEvaluator,
    build_model,
)
from utils.tasks.loaders import build_dataset, open_train_folder
from utils.tasks.segmentation_losses import counted_images, dice_sum, focal_sum
from utils.training.state import Goal

HEAD = "semseg"


class SegmentationTask(FinetuneTask):
    """One head of class logits; losses on pixels that are neither void nor padding.

    With ``learn_padding``, as in the published runs, padding is one more class of the loss.
    """

    def __init__(
        self,
        model: MultiViT,
        inputs: Sequence[Modality],
        target: Modality,
        *,
        zero_is_void: bool,
        learn_padding: bool = False,
        valid_name: str | None = None,
        class_weights: Sequence[float] | None = None,
        losses: Sequence[SegLoss] = ("ce",),
        focal_gamma: float = 2.0,
    ) -> None:
        """Set up the task.

        Args:
            model: Model with a head ``semseg`` of ``target.num_classes`` classes, plus one for
                padding with ``learn_padding``.
            inputs: Input modalities.
            target: Label modality with the predicted classes.
            zero_is_void: Stored label 0 is void, and classes start at 1.
            learn_padding: Padding is an extra class in the loss; stored void is ignored.
            valid_name: Map of valid pixels for scalar inputs.
            class_weights: Weights of the classes in the loss; the weight of padding is 1.
            losses: Losses to add: cross-entropy, Dice, focal.
            focal_gamma: Exponent of the focal loss.
        """
        super().__init__(model, inputs)
        padding = [1.0] if learn_padding else []
        self.set_class_weights(class_weights and [*class_weights, *padding])
        self.target, self.valid_name = target, valid_name
        self.zero_is_void, self.learn_padding = zero_is_void, learn_padding
        self.losses, self.focal_gamma = tuple(losses), focal_gamma
        if "dice" in losses:
            self.loss_names = ("loss", "loss/dice")

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Model inputs: padding is class K in label maps, 0 (after scaling) in scalar maps."""
        inside = batch.images[INSIDE]
        valid = inside
        if self.valid_name is not None:
            valid = inside & (batch.images[self.valid_name][:, 0] > 127)
        return prepare_padded(batch.images, self.inputs, inside, valid)

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Class ids (B, H, W) with void and padding as ``IGNORE``, and the padding mask."""
        inside = batch.images[INSIDE]
        return class_labels(batch.images[self.target.name], inside, self.zero_is_void), ~inside

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Sum of the losses; 0 with a graph if no pixel is labelled."""
        return self._losses(batch, position.counts)

    def _losses(self, batch: Batch, counts: Tensor | None) -> StepOutput:
        labels, padding = self.labels(batch)
        logits = self.predict(self.prepare(batch))[HEAD]
        return StepOutput(self.loss(logits, labels, padding, counts), {})

    def loss(
        self, logits: Tensor, labels: Tensor, padding: Tensor, counts: Tensor | None = None
    ) -> Tensor:
        """Sum of the losses of logits (B, K, H, W).

        Cross-entropy and focal loss are means over pixels, weighted by class, and Dice is a mean
        over images: both over ``counts``, see :meth:`count`.
        """
        labels, logits = self._loss_labels(labels, padding), logits.float()
        weights, counts = self.class_weights, self._counts(labels) if counts is None else counts
        total = logits.new_zeros(())
        if "ce" in self.losses:
            # By pixel: logits of heads that are channels last are not copied.
            by_pixel = logits.movedim(1, -1).flatten(0, -2)
            total = F.cross_entropy(
                by_pixel, labels.flatten(), weights, ignore_index=IGNORE, reduction="sum"
            )
        if "focal" in self.losses:
            total = total + focal_sum(logits, labels, weights, self.focal_gamma)
        loss = mean_of_sum(total, counts[0])
        if "dice" in self.losses:
            loss = loss + mean_of_sum(dice_sum(logits, labels, weights), counts[1])
        return loss

    def count(self, batch: Batch, position: StepPosition) -> Tensor:
        """Number of labelled pixels, or the sum of their class weights; of images with Dice."""
        return self._count(batch)

    def _count(self, batch: Batch) -> Tensor:
        return self._counts(self._loss_labels(*self.labels(batch)))

    def _counts(self, labels: Tensor) -> Tensor:
        counts = [self.total_weight(labels, IGNORE)]
        if "dice" in self.losses:
            counts.append(counted_images(labels, self.class_weights).to(counts[0]))
        return torch.stack(counts)

    def _loss_labels(self, labels: Tensor, padding: Tensor) -> Tensor:
        """Labels for the loss; with ``learn_padding``, padding is class ``num_classes``."""
        return (
            labels.masked_fill(padding, self.target.num_classes) if self.learn_padding else labels
        )


class SegmentationEvaluator(SplitEvaluator[SegmentationTask]):
    """Confusion matrix over a split: mean IoU, accuracies, and ``{split}_classes.csv``."""

    by_pixel = True

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """``{split}/mean_iou``, ``mean_accuracy`` (percent), ``pixel_accuracy``, ``loss``."""
        target = self.task.target
        scores = LabelScores(target.num_classes, self.task.learn_padding, self.world.device)
        for batch, outputs in self.predictions(model):
            scores.update(outputs[HEAD], *self.task.labels(batch))
        values = self.reduce(*scores.meters)
        if self.logger.paths is not None and self.world.is_main:
            write_class_table(self.logger.paths.class_table(self.split), scores.confusion, target)
        return values


def write_class_table(path: Path, meter: SegmentationMeter, target: Modality) -> None:
    """Write IoU, accuracy and pixels per class as CSV; empty for absent classes."""
    iou, accuracy = (values.tolist() for values in meter.per_class())
    pixels = meter.confusion.sum(dim=1).tolist()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "iou", "accuracy", "pixels"])
        for i in range(target.num_classes):
            name = target.class_names[i] if target.class_names else ""
            scores = ["" if math.isnan(v) else f"{v:.4f}" for v in (iou[i], accuracy[i])]
            writer.writerow([i, name, *scores, int(pixels[i])])


class SegmentationPictures(PredictionPictures[SegmentationTask]):
    """Draws inputs, predicted and true classes of a fixed batch."""

    def draw(
        self, batch: Batch, inputs: Mapping[str, list[Picture]], outputs: Mapping[str, Tensor]
    ) -> Image.Image:
        """Compose the grid, with a legend of its classes; padding is grey in every column."""
        labels, padding = (x.cpu() for x in self.task.labels(batch))
        target = with_void(self.task.target)
        pred = outputs[HEAD][:, : self.task.target.num_classes].argmax(dim=1).cpu() + 1
        truth = torch.where(labels == IGNORE, 0, labels + 1)
        columns = {
            **inputs,
            "prediction": [to_picture(ids, target) for ids in pred],
            "truth": [to_picture(ids, target) for ids in truth],
        }
        photo = next((inputs[m.name] for m in self.task.inputs if m.is_photo), None)
        if photo is not None:
            shown = (pred - 1).masked_fill(padding, NO_CLASS).numpy()
            columns["over photo"] = [
                named_overlay(*both, self.task.target) for both in zip(photo, shown, strict=True)
            ]
        for pictures in columns.values():
            for picture, outside in zip(pictures, padding.numpy(), strict=True):
                picture[nearest(outside, picture.shape[:2])] = PADDING_GREY
        ids = torch.cat([pred[~padding], truth[~padding]]).numpy()
        return prediction_grid(columns, captions=batch.names, legend=target, ids=ids)


class SegmentationFinetuning(Finetuning[SegmentationTask]):
    """Semantic segmentation; the best checkpoint has the highest mean IoU."""

    cfg: SemsegConfig
    goal = Goal("eval/mean_iou")
    scores = SegmentationEvaluator
    pictures = SegmentationPictures

    def __init__(self, cfg: SemsegConfig, world: World) -> None:
        """Select the modalities to read."""
        super().__init__(cfg, world)
        trained = self.trained_head(HEAD)
        if trained is not None and trained.zero_is_void is not None:
            flags = {"seg_reduce_zero_label": trained.zero_is_void}
            if any(m.plot == "scalar" for m in self.inputs):
                flags["use_mask_valid"] = trained.uses_mask_valid
            self.cfg, notes = with_trained_options(self.cfg, flags, self.source)
            self.notes += notes
        cfg, data = self.cfg, self.cfg.data
        roots = data.roots
        if cfg.scores_only:
            roots = ((data.test_data_path if cfg.start.test else data.eval_data_path) or "",)
        names = self._class_names(*roots)
        if trained is not None:
            check_same_classes(names, trained.target.class_names, roots[0], "the weights")
            names = names or trained.target.class_names
        names = names or published_class_names(data.dataset_name, data.num_classes)
        self.target = replace(data.target(names), label_map=self._label_map)
        self.valid: Modality | None = None
        if data.use_mask_valid and any(m.plot == "scalar" for m in self.inputs):
            self.valid = mask_modality()
        extra = [self.valid] if self.valid else []
        self.stored = stored_target(self.target)
        tag = world.broadcast_from_main(lambda: no_data_tag(self.stored, *self.roots))
        self.stored = with_no_data(self.stored, tag)
        self.modalities = [*self.inputs, *extra, self.stored]

    @cached_property
    def class_weights(self) -> tuple[float, ...] | None:
        """Weights of the classes in the training loss (collective)."""
        option, names = self.cfg.data.class_weights, self.target.class_names
        if option is None or self.cfg.scores_only:
            return None
        dataset = self.train_set()
        table = self._table(dataset.parts[0])
        void = {0: (*table.class_names, "")[0], IGNORE: ""}
        return self.world.broadcast_from_main(
            lambda: resolve_weights(option, names, table.classes, dataset.class_pixels, void)
        )

    def _class_names(self, *roots: str) -> tuple[str, ...]:
        data = self.cfg.data
        return reduced_class_names(
            self._stored_names(*roots),
            data.num_classes,
            data.seg_reduce_zero_label,
            " and ".join(f"{root}/{CLASSES_FILE}" for root in roots),
        )

    def _stored_names(self, *roots: AnyPath | str) -> tuple[str, ...]:
        """Names of the ids of label maps, void included, after the ``label_map``."""
        names = read_class_names(roots[0]) or ()
        if len(roots) > 1:
            from utils.data.mixing import common_class_names

            names = common_class_names(list(map(str, roots))) or ()
        return mapped_names(names, self._label_map) if self._label_map else names

    @property
    def _label_map(self) -> tuple[str, ...]:
        """The label map of the options; if unset, that of the weights to evaluate."""
        data, trained = self.cfg.data, self.trained_head(HEAD)
        if trained is not None and "label_map" not in data.set_by_user:
            return trained.target.label_map
        return parse_label_map(data.label_map)

    def describe(self, dataset: MultiModalDataset) -> Iterator[str]:
        """Yield statistics of the target labels and of label inputs."""
        yield from self._table(dataset).lines()
        if self.class_weights is not None and dataset is self.train_set().parts[-1]:
            ids = self._table(dataset).classes
            yield describe_weights(self.class_weights, self.target.class_names, ids)
        for table in label_tables(dataset):
            if table.name != self.target.name:
                yield from table.lines()

    def _table(self, dataset: MultiModalDataset) -> LabelTable:
        reduced, classes = self.cfg.data.seg_reduce_zero_label, self.target.num_classes
        void = (self._stored_names(dataset.folder.root) or ("void",))[:1] if reduced else ()
        return LabelTable(
            self.target.name,
            dataset.folder.root,
            dataset.label_counts.get(self.target.name, np.zeros(65536, np.int64)),
            range(int(reduced), classes + int(reduced)),
            (*void, *self.target.class_names) if self.target.class_names else (),
            reduced,
        )

    def train_set(self) -> SegmentationDataset:
        """Training set of ``--data_path`` with augmentation, checked."""
        return self._train_set

    @cached_property
    def _train_set(self) -> SegmentationDataset:
        data = self.cfg.data
        transform = SegTrainTransform(
            self.modalities, self.cfg.model.input_size, data.scale_jitter, data.hflip, data.vflip
        )
        folder = open_train_folder(self.cfg, lambda root: self._folder(root, train=True))
        dataset = self._dataset(folder, transform, data.max_train_images, train=True)
        for part in dataset.parts:
            check_classes(self._table(part))
        return dataset

    def eval_set(self, split: Split) -> SegmentationDataset | None:
        """Padded samples of a split, checked."""
        data = self.cfg.data
        path = data.eval_data_path if split == "eval" else data.test_data_path
        limit = data.max_val_images if split == "eval" else None
        transform = SegEvalTransform(self.modalities, self.cfg.model.input_size)
        if not path:
            return None
        names = self._class_names(path)
        check_same_classes(names, self.target.class_names, path, " and ".join(data.roots))
        return self._dataset(self._folder(path), transform, limit)

    def build_task(self) -> SegmentationTask:
        """Build the model with the head of the options.

        Raises:
            UserError: Invalid combination of options.
        """
        cfg, data = self.cfg, self.cfg.data
        channels = data.num_classes + int(data.seg_use_void_label)
        model = build_model(
            cfg,
            self.inputs,
            [
                HeadSpec(
                    HEAD,
                    self.target,
                    channels,
                    cfg.model.head,
                    zero_is_void=data.seg_reduce_zero_label,
                    uses_mask_valid=self.valid is not None,
                )
            ],
            resize_mode="pad",
            learnable_pos_emb=cfg.model.learnable_pos_emb,
        )
        return SegmentationTask(
            model,
            self.inputs,
            self.target,
            zero_is_void=data.seg_reduce_zero_label,
            learn_padding=data.seg_use_void_label,
            valid_name=self.valid.name if self.valid else None,
            class_weights=self.class_weights,
            losses=data.losses,
            focal_gamma=data.focal_gamma,
        )

    def _folder(self, path: str, train: bool = False) -> MultiModalFolder:
        skip = train and self.cfg.data.skips_bad
        return MultiModalFolder(path, self.modalities, skip_incomplete=skip, find=self.find_index)

    def _dataset(
        self,
        folder: MultiModalFolder,
        transform: JointTransform,
        limit: int | None,
        train: bool = False,
    ) -> SegmentationDataset:
        data = self.cfg.data
        return build_dataset(
            SegmentationDataset,
            self.cfg,
            folder,
            transform,
            world=self.world,
            train=train,
            limit=limit,
            target=self.stored,
            num_classes=data.num_classes,
            zero_is_void=data.seg_reduce_zero_label,
        )
