"""Image classification, several labels or numbers per image: losses, metrics, pictures, setup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from multimae.criterion import mean_of_sum
from multimae.images.folders import MultiModalFolder
from multimae.inference.label_files import own_names
from multimae.inference.meters import MeanMeter
from multimae.inference.table_metrics import MultiLabelScores, NumberMeter, label_losses
from multimae.inference.truth import ClassScores
from multimae.multimae import MultiViT
from multimae.plotting.colours import Picture
from multimae.plotting.predictions import prediction_grid
from multimae.specs.errors import UserError
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
from utils.tasks.loaders import build_dataset, open_train_folder
from utils.training.state import Goal

HEAD = "cls"


class Targets(Protocol):
    """Labels of samples by name."""

    def targets(self, samples: Sequence[str], device: torch.device | None = None) -> Tensor:
        """Class ids (B,), or (B, K) of several labels or numbers; NaN: unknown."""
        ...


class ClassificationTask(FinetuneTask):
    """MultiViT with a linear head.

    Cross-entropy, with soft targets of Mixup and CutMix; binary cross-entropy of several labels; or
    the squared or absolute error of standardized numbers.

    Attributes:
        labels: Labels by split: ``train``, ``eval``, ``test``.
        head: Spec of the head.
    """

    mean: Tensor
    std: Tensor
    label_digest: Tensor

    def __init__(
        self,
        model: MultiViT,
        inputs: Sequence[Modality],
        labels: dict[str, Targets],
        head: HeadSpec,
        options: ClsDataOptions,
        class_weights: Sequence[float] | None = None,
        label_digest: Tensor | None = None,
    ) -> None:
        """Set up Mixup, CutMix and random erasing from ``options``.

        Args:
            model: Model with the head.
            inputs: Input modalities.
            labels: Labels by split.
            head: Spec of the head.
            options: Augmentation and loss.
            class_weights: Weights of the classes.
            label_digest: Checksum of a label file, stored in checkpoints.
        """
        super().__init__(model, inputs)
        self.set_class_weights(class_weights)
        self.labels, self.head, self.kind = labels, head, options.label_kind
        self.smoothing, self.number_loss = options.smoothing, options.number_loss
        self.mixup: Any = _mixup(options, head.channels) if options.mixes else None
        if self.kind == "number":
            self.register_buffer("mean", torch.tensor(head.target.mean))
            self.register_buffer("std", torch.tensor(head.target.std))
        if label_digest is not None:
            self.register_buffer("label_digest", label_digest)
        self.reprob, self.remode, self.recount = options.reprob, options.remode, options.recount

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Loss of the augmented batch; Mixup works within the batch."""
        labels = self.targets(batch)
        x, soft = None, None
        if self.reprob > 0 or self.mixup is not None:  # drawn on the host: not part of a graph
            x = self.prepare(batch)
            if self.reprob > 0:
                x |= {m.name: self._erase(x[m.name]) for m in self.inputs if m.is_photo}
            if self.mixup is not None:
                x, soft = mix(self.mixup, x, labels, self.inputs)
        return StepOutput(self._losses(batch, x, labels, soft, position.counts), {})

    def _losses(
        self, batch: Batch, x: Any, labels: Tensor, soft: Tensor | None, counts: Tensor | None
    ) -> Tensor:
        """Loss of a batch, or of its augmented inputs ``x``."""
        outputs = self.predict(self.prepare(batch) if x is None else x)[HEAD].float()
        count = self._count(labels) if counts is None else counts
        return mean_of_sum(self.loss(outputs, labels, soft), count[0])

    def loss(self, outputs: Tensor, labels: Tensor, soft: Tensor | None = None) -> Tensor:
        """Sum of the losses.

        Args:
            outputs: (B, K), float32.
            labels: Class ids (B,), or labels and numbers (B, K).
            soft: Targets (B, K) of Mixup.
        """
        if self.kind != "class":
            return self.losses(outputs, labels).sum()
        if soft is not None:
            weights = 1.0 if self.class_weights is None else self.class_weights
            return -(weights * soft * outputs.log_softmax(dim=1)).sum()
        return F.cross_entropy(
            outputs, labels, self.class_weights, reduction="sum", label_smoothing=self.smoothing
        )

    def count(self, batch: Batch, position: StepPosition) -> Tensor:
        """Number of samples, or the sum of the weights of their classes, before Mixup.

        Of several labels and numbers, how many are known.
        """
        return self._count(self.targets(batch))

    def _count(self, labels: Tensor) -> Tensor:
        if self.kind != "class":
            return labels.isfinite().sum().reshape(1)
        return self.total_weight(labels).reshape(1)

    def targets(self, batch: Batch, split: str = "train") -> Tensor:
        """Class ids (B,), or (B, K) of 0 and 1 or of standardized numbers; NaN: unknown."""
        device = next(iter(batch.images.values())).device
        found = self.labels[split].targets(batch.names, device)
        return (found - self.mean) / self.std if self.kind == "number" else found

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every label or number (B, K); 0 for unknown ones."""
        if self.kind == "multi":
            return label_losses(outputs, targets)
        known = targets.isfinite()
        truth = torch.where(known, targets, 0.0)
        error = outputs - truth
        return torch.where(known, error.abs() if self.number_loss == "l1" else error.square(), 0.0)

    def load_extra_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the labels and class weights are the same.

        Raises:
            ValueError: They differ.
        """
        saved = state.get("label_digest")
        own = self.state_dict().get("label_digest")
        if saved is not None and own is not None and not torch.equal(saved.cpu(), own.cpu()):
            raise ValueError("label_file: the labels of the training images changed")
        super().load_extra_state_dict(state)

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
            scores.update(outputs[HEAD], self.task.targets(batch, self.split))
        return self.reduce(*scores.meters)


class LabelEvaluator(SplitEvaluator[ClassificationTask]):
    """Mean average precision and F1 of several labels, or errors of numbers."""

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """``{split}/map``, ``f1_micro``, ``f1_macro`` (percent); ``mae``, ``rmse``, ``r2``.

        And the ``loss``.
        """
        head, device = self.task.head, self.world.device
        dataset = self.loader.dataset
        assert isinstance(dataset, MultiModalDataset)
        names = [dataset.name(i) for i in range(len(dataset))]
        ranking = MultiLabelScores(names, head.channels, device)
        mean = MeanMeter(["loss"], device)
        errors = NumberMeter(head.target.class_names, head.target.mean, head.target.std, device)
        for batch, outputs in self.predictions(model):
            targets = self.task.targets(batch, self.split)
            if self.task.kind == "multi":
                ranking.update(batch.names, outputs[HEAD], targets)
            else:
                losses = self.task.losses(outputs[HEAD], targets)
                mean.update({"loss": losses}, targets.isfinite())
                errors.update(outputs[HEAD], targets)
        return self.reduce(*(ranking.meters if self.task.kind == "multi" else (errors, mean)))


class ClassPictures(PredictionPictures[ClassificationTask]):
    """Draws the inputs of a fixed batch, captioned with predicted and true class."""

    def draw(
        self, batch: Batch, inputs: Mapping[str, list[Picture]], outputs: Mapping[str, Tensor]
    ) -> Image.Image:
        """Compose the grid; captions give prediction and truth."""
        if self.task.kind != "class":
            return prediction_grid(inputs, captions=self._captions(batch, outputs[HEAD]))
        shares, predicted = outputs[HEAD].softmax(dim=1).max(dim=1)
        names = self.task.head.target.class_names
        truth = self.task.targets(batch, self.split)
        captions = [
            f"{'right' if pred == true else 'wrong'}: {names[pred]} ({share:.0%}), "
            f"truth: {names[true]}"
            for pred, share, true in zip(
                predicted.tolist(), shares.tolist(), truth.tolist(), strict=True
            )
        ]
        return prediction_grid(inputs, captions=captions)

    def _captions(self, batch: Batch, outputs: Tensor) -> list[str]:
        """Predicted and true labels or numbers."""
        names, targets = self.task.head.target.class_names, self.task.targets(batch, self.split)
        if self.task.kind == "multi":
            rows = [[names[i] for i in (row > 0).nonzero().flatten().tolist()] for row in outputs]
            true = [[names[i] for i in (row == 1).nonzero().flatten().tolist()] for row in targets]
            return [
                f"{', '.join(a) or 'none'}; truth: {', '.join(b) or 'none'}"
                for a, b in zip(rows, true, strict=True)
            ]
        unit = [(v * self.task.std + self.task.mean).tolist() for v in (outputs, targets)]
        return [
            "; ".join(
                f"{name} {a:.4g}, truth: {b:.4g}" for name, a, b in zip(names, p, t, strict=True)
            )
            for p, t in zip(*unit, strict=True)
        ]


class ClassificationFinetuning(Finetuning[ClassificationTask]):
    """Image classification.

    The best checkpoint has the highest top-1 accuracy, the highest mean average precision, or, of
    numbers, the lowest loss.
    """

    cfg: ClsConfig
    label_digest: Tensor | None = None
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    goal = Goal("eval/acc1")
    scores: type[SplitEvaluator[ClassificationTask]] = AccuracyEvaluator
    pictures = ClassPictures

    def __init__(self, cfg: ClsConfig, world: World) -> None:
        """Select the inputs and find the classes.

        Classes are the folders of the training set, or the labels of its file. Evaluation alone
        uses the class names of the weights, if they have any.
        """
        super().__init__(cfg, world)
        kind, head = cfg.data.label_kind, self.trained_head(HEAD)
        if kind != "class":
            self.scores = LabelEvaluator
            self.goal = Goal("eval/map") if kind == "multi" else Goal("eval/loss", False)
        options = head.options if head else None
        trained = options.predicts if isinstance(options, LinearOptions) else kind
        if trained != kind:
            raise UserError(f"the weights predict label_kind {trained}: set --label_kind {trained}")
        stored_names = head.target.class_names if head else ()
        self.labels: dict[str, Targets] = {}
        if cfg.data.label_file:
            self.names = self._read_labels(stored_names, head)
            return
        classes = (
            ClassIndex(stored_names)
            if stored_names
            else find_classes(self.train_folder, cfg.data.nb_classes)
        )
        self.classes, self.names = classes, classes.names
        self.labels = {"train": classes, "eval": classes, "test": classes}

    def _read_labels(self, stored_names: Sequence[str], head: HeadSpec | None) -> tuple[str, ...]:
        """Read the label files; return the names of classes or numbers."""
        from multimae.inference.label_files import read_label_file

        data = self.cfg.data
        kind, other = data.label_kind, data.eval_label_file or data.label_file
        if self.cfg.scores_only and stored_names:
            found = read_label_file(other, kind, stored_names)
        else:
            found = read_label_file(data.label_file, kind)
            found.check(self.train_folder)
            self.label_digest = found.digest(self.train_folder)
            if kind != "number" and len(found.names) != data.nb_classes:
                raise UserError(
                    f"{data.label_file} has {len(found.names)} classes "
                    f"({', '.join(found.names[:5])}{', ...' * (len(found.names) > 5)}) but "
                    f"nb_classes is {data.nb_classes}: set --nb_classes {len(found.names)}."
                )
        if kind == "number":
            if head is not None:
                self.statistics = head.target.mean, head.target.std
            else:
                self.statistics = found.statistics(self.train_folder)
        same = found.path == Path(other)
        scored = found if same else read_label_file(other, kind, found.names)
        self.labels = {"train": found, "eval": scored, "test": scored}
        return found.names

    @cached_property
    def train_folder(self) -> MultiModalFolder:
        """Training images."""
        skip_bad = self.cfg.data.skips_bad
        return open_train_folder(self.cfg, lambda root: self._folder(root, skip_bad=skip_bad))

    def train_set(self) -> MultiModalDataset:
        """Augmented samples of ``--data_path``, checked."""
        data = self.cfg.data
        transform = ClassTrainTransform(
            self.inputs, self.cfg.model.input_size, data.aa, data.color_jitter
        )
        return build_dataset(
            MultiModalDataset,
            self.cfg,
            self.train_folder,
            transform,
            world=self.world,
            train=True,
            limit=data.max_train_images,
        )

    def eval_set(self, split: Split) -> MultiModalDataset | None:
        """Centre crops of a split, checked."""
        data = self.cfg.data
        path = data.eval_data_path if split == "eval" else data.test_data_path
        if not path:
            return None
        folder = self._folder(path)
        labels = self.labels[split]
        if isinstance(labels, ClassIndex):
            check_classes(folder, labels)
        else:
            from multimae.inference.label_files import LabelFile

            assert isinstance(labels, LabelFile)
            labels.check(folder)
        transform = ClassEvalTransform(self.inputs, self.cfg.model.input_size, self.cfg.crop_pct)
        limit = data.max_val_images if split == "eval" else None
        return build_dataset(
            MultiModalDataset, self.cfg, folder, transform, world=self.world, limit=limit
        )

    def build_task(self) -> ClassificationTask:
        """Model with a linear head."""
        model, kind = self.cfg.model, self.cfg.data.label_kind
        options = LinearOptions(model.use_mean_pooling, model.init_scale, kind)
        head = HeadSpec(HEAD, self._target(), len(self.names), options)
        built = build_model(
            self.cfg,
            self.inputs,
            [head],
            resize_mode="crop",
            crop_pct=self.cfg.crop_pct,
            drop_rate=model.drop,
            attn_drop_rate=model.attn_drop_rate,
        )
        return ClassificationTask(
            built,
            self.inputs,
            self._labels_by_sample(),
            head,
            self.cfg.data,
            self.class_weights,
            self.label_digest,
        )

    def _labels_by_sample(self) -> dict[str, Targets]:
        if not self.cfg.data.sources:
            return self.labels
        from utils.data.mixing import MixedTargets

        return {**self.labels, "train": MixedTargets(self.labels["train"])}

    def _target(self) -> Modality:
        """Modality of the classes, or of the numbers with their statistics."""
        names = tuple(self.names)
        if self.cfg.data.label_kind == "number":
            mean, std = self.statistics
            return Modality(
                HEAD,
                num_channels=len(names),
                storage="float",
                max_value=1.0,
                mean=mean,
                std=std,
                interpolation="nearest",
                plot="scalar",
                class_names=names,
            )
        return Modality(
            HEAD,
            "labels",
            num_classes=len(names),
            class_names=names,
            loss="cross_entropy",
            interpolation="nearest",
            plot="labels",
        )

    @cached_property
    def class_weights(self) -> tuple[float, ...] | None:
        """Weights of the classes in the training loss."""
        option, names = self.cfg.data.class_weights, self.names
        if option is None or self.cfg.scores_only:
            return None
        folder, ids = self.train_folder, range(len(names))

        def count() -> tuple[Any, Any]:
            limit = self.cfg.data.max_train_images
            trained = slice(None) if limit is None else folder.spread(limit)
            found = self.labels["train"].targets(own_names(folder))[trained]
            times = torch.tensor(folder.times_per_epoch, dtype=torch.float64)
            each = times.repeat_interleave(torch.tensor([*map(len, folder.parts)]))[trained]
            counts = found.bincount(each, minlength=len(ids))
            return counts.numpy(), np.full(len(ids), len(found))

        return self.world.broadcast_from_main(lambda: resolve_weights(option, names, ids, count))

    def describe(self, dataset: MultiModalDataset) -> Iterator[str]:
        """Add the class weights."""
        yield from super().describe(dataset)
        if self.class_weights is not None and dataset.folder is self.train_folder.parts[-1]:
            ids = range(len(self.names))
            yield describe_weights(self.class_weights, self.names, ids)

    def _folder(self, path: str, skip_bad: bool = False) -> MultiModalFolder:
        root = data_root(path, self.inputs)
        return MultiModalFolder(root, self.inputs, skip_incomplete=skip_bad, find=self.find_index)
