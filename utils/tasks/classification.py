"""Image classification: loss, accuracy, pictures, and the setup of the script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from multimae.criterion import mean_of_sum
from multimae.images.folders import MultiModalFolder
from multimae.inference.truth import ClassScores
from multimae.multimae import MultiViT
from multimae.plotting.colours import Picture
from multimae.plotting.predictions import prediction_grid
from multimae.specs.heads import HeadSpec, LinearOptions
from multimae.specs.modalities import Modality
from utils.config.cls_options import ClsConfig, ClsDataOptions
from utils.config.finetune_options import Split
from utils.data.batches import Batch
from utils.data.dataset import MultiModalDataset
from utils.data.sets.class_folders import (
    ClassEvalTransform,
    ClassIndex,
    ClassTrainTransform,
    check_classes,
    data_root,
    default_crop_pct,
    find_classes,
    mix,
)
from utils.data.sets.class_weights import describe_weights, resolve_weights
from utils.distributed.world import World
from utils.tasks.base import StepOutput, StepPosition
from utils.tasks.finetuning import (
    FinetuneTask,
    Finetuning,
    PredictionPictures,
    SplitEvaluator,
    build_model,
)
from utils.tasks.loaders import build_dataset
from utils.training.state import Goal

HEAD = "cls"


class ClassificationTask(FinetuneTask):
    """MultiViT with a linear head and cross-entropy; soft targets with Mixup and CutMix."""

    def __init__(
        self,
        model: MultiViT,
        inputs: Sequence[Modality],
        classes: ClassIndex,
        options: ClsDataOptions,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        """Set up Mixup, CutMix and random erasing from ``options``."""
        super().__init__(model, inputs)
        self.set_class_weights(class_weights)
        self.classes, self.smoothing = classes, options.smoothing
        self.mixup: Any = _mixup(options, len(classes)) if options.mixes else None
        self.reprob, self.remode, self.recount = options.reprob, options.remode, options.recount

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Cross-entropy of the augmented batch; Mixup works within the batch."""
        x = self.prepare(batch)
        device = next(iter(x.values())).device
        labels = self.classes.ids(batch.names, device)
        if self.reprob > 0:
            x = {m.name: self._erase(x[m.name]) if m.is_photo else x[m.name] for m in self.inputs}
        soft: Tensor | None = None
        if self.mixup is not None:
            x, soft = mix(self.mixup, x, labels, self.inputs)
        logits = self.predict(x)[HEAD].float()
        if soft is not None:
            weights = 1.0 if self.class_weights is None else self.class_weights
            total = -(weights * soft * logits.log_softmax(dim=1)).sum()
        else:
            total = F.cross_entropy(
                logits, labels, self.class_weights, reduction="sum", label_smoothing=self.smoothing
            )
        count = self.total_weight(labels) if position.counts is None else position.counts[0]
        return StepOutput(mean_of_sum(total, count), {})

    def count(self, batch: Batch, position: StepPosition) -> Tensor:
        """Number of samples, or the sum of the weights of their classes, before Mixup."""
        device = next(iter(batch.images.values())).device
        return self.total_weight(self.classes.ids(batch.names, device)).reshape(1)

    def _erase(self, images: Tensor) -> Tensor:
        from timm.data.random_erasing import RandomErasing

        erase: Any = RandomErasing(  # type: ignore[no-untyped-call]
            self.reprob, mode=self.remode, max_count=self.recount, device=str(images.device)
        )
        erased: Tensor = erase(images.clone())
        return erased


def _mixup(options: ClsDataOptions, num_classes: int) -> Any:
    from timm.data.mixup import Mixup

    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        cutmix_minmax=options.cutmix_minmax,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        mode=options.mixup_mode,
        label_smoothing=options.smoothing,
        num_classes=num_classes,
    )


class AccuracyEvaluator(SplitEvaluator[ClassificationTask]):
    """Top-1 and top-5 accuracy over a split."""

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """``{split}/acc1``, ``acc5`` (percent) and ``loss``."""
        scores = ClassScores(self.world.device)
        for batch, outputs in self.predictions(model):
            scores.update(outputs[HEAD], self.task.classes.ids(batch.names, self.world.device))
        return self.reduce(*scores.meters)


class ClassPictures(PredictionPictures[ClassificationTask]):
    """Draws the inputs of a fixed batch, captioned with predicted and true class."""

    def draw(
        self, batch: Batch, inputs: Mapping[str, list[Picture]], outputs: Mapping[str, Tensor]
    ) -> Image.Image:
        """Compose the grid; captions give the classes."""
        shares, predicted = outputs[HEAD].softmax(dim=1).max(dim=1)
        names, truth = self.task.classes.names, self.task.classes.ids(batch.names)
        captions = [
            f"{'right' if pred == true else 'wrong'}: {names[pred]} ({share:.0%}), "
            f"truth: {names[true]}"
            for pred, share, true in zip(
                predicted.tolist(), shares.tolist(), truth.tolist(), strict=True
            )
        ]
        return prediction_grid(inputs, captions=captions)


class ClassificationFinetuning(Finetuning[ClassificationTask]):
    """Image classification; the best checkpoint has the highest top-1 accuracy."""

    cfg: ClsConfig
    goal = Goal("eval/acc1")
    scores = AccuracyEvaluator
    pictures = ClassPictures

    def __init__(self, cfg: ClsConfig, world: World) -> None:
        """Select the inputs and find the classes.

        Classes are the folders of the training set. Evaluation alone uses the class names of the
        weights, if they have any.
        """
        super().__init__(cfg, world)
        head = self.trained_head(HEAD)
        stored_names = head.target.class_names if head else ()
        self.classes = (
            ClassIndex(stored_names)
            if stored_names
            else find_classes(self.train_folder, cfg.data.nb_classes)
        )

    @cached_property
    def train_folder(self) -> MultiModalFolder:
        """Training images."""
        return self._folder(self.cfg.data.data_path, skip_bad=self.cfg.data.skips_bad)

    def train_set(self) -> MultiModalDataset:
        """Augmented samples of ``--data_path``, checked."""
        data = self.cfg.data
        transform = ClassTrainTransform(
            self.inputs, self.cfg.model.input_size, data.aa, data.color_jitter
        )
        return build_dataset(
            MultiModalDataset, self.cfg, self.train_folder, transform, world=self.world, train=True
        )

    def eval_set(self, split: Split) -> MultiModalDataset | None:
        """Centre crops of a split, checked."""
        data = self.cfg.data
        path = data.eval_data_path if split == "eval" else data.test_data_path
        if not path:
            return None
        folder = self._folder(path)
        check_classes(folder, self.classes)
        transform = ClassEvalTransform(self.inputs, self.cfg.model.input_size, self._crop_pct)
        limit = data.max_val_images if split == "eval" else None
        return build_dataset(
            MultiModalDataset, self.cfg, folder, transform, world=self.world, limit=limit
        )

    def build_task(self) -> ClassificationTask:
        """Model with a linear head."""
        model = self.cfg.model
        names = self.classes.names
        target = Modality(
            HEAD,
            "labels",
            num_classes=len(names),
            class_names=tuple(names),
            loss="cross_entropy",
            interpolation="nearest",
            plot="labels",
        )
        options = LinearOptions(model.use_mean_pooling, model.init_scale)
        built = build_model(
            self.cfg,
            self.inputs,
            [HeadSpec(HEAD, target, len(names), options)],
            resize_mode="crop",
            crop_pct=self._crop_pct,
            drop_rate=model.drop,
            attn_drop_rate=model.attn_drop_rate,
        )
        return ClassificationTask(
            built, self.inputs, self.classes, self.cfg.data, self.class_weights
        )

    @cached_property
    def class_weights(self) -> tuple[float, ...] | None:
        """Weights of the classes in the training loss."""
        option, names = self.cfg.data.class_weights, self.classes.names
        if option is None or self.cfg.scores_only:
            return None
        folder, ids = self.train_folder, range(len(self.classes))

        def count() -> tuple[Any, Any]:
            found = self.classes.ids([folder.name(i) for i in range(len(folder))])
            return found.bincount(minlength=len(ids)).numpy(), np.full(len(ids), len(folder))

        return self.world.broadcast_from_main(lambda: resolve_weights(option, names, ids, count))

    def describe(self, dataset: MultiModalDataset) -> Iterator[str]:
        """Add the class weights."""
        yield from super().describe(dataset)
        if self.class_weights is not None and dataset.folder is self.train_folder:
            names = self.classes.names
            yield describe_weights(self.class_weights, names, range(len(names)))

    @property
    def _crop_pct(self) -> float:
        """Crop percentage of evaluation, as a fraction of the shorter side."""
        return self.cfg.data.crop_pct or default_crop_pct(self.cfg.model.input_size)

    def _folder(self, path: str, skip_bad: bool = False) -> MultiModalFolder:
        root = data_root(path, self.inputs)
        return MultiModalFolder(root, self.inputs, skip_incomplete=skip_bad, find=self.find_index)
