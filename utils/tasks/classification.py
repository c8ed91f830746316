"""Classification: batch -> loss, accuracies and pictures; data of the script."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from multimae.multimae import MultiViT
from multimae.plotting.pictures import to_picture
from multimae.plotting.predictions import prediction_grid
from multimae.specs.heads import HeadSpec, LinearOptions
from multimae.specs.modalities import Modality, select
from utils.config.cls_options import ClsConfig, ClsDataOptions
from utils.config.finetune_options import Split
from utils.data.batches import Batch, collate
from utils.data.dataset import MultiModalDataset, check_samples
from utils.data.folders import MultiModalFolder
from utils.data.sets.class_folders import (
    DEFAULT_CROP_PCT,
    ClassEvalTransform,
    ClassIndex,
    ClassTrainTransform,
    check_classes,
    data_root,
    find_classes,
    mix,
)
from utils.data.transforms import JointTransform
from utils.distributed.world import World
from utils.logs.logger import RunLogger
from utils.tasks.base import Evaluator, Pictures, StepOutput, StepPosition
from utils.tasks.finetuning import (
    CHECKED_SAMPLES,
    FinetuneTask,
    Finetuning,
    build_model,
    eval_loader,
)
from utils.tasks.reconstruction import spread_keys
from utils.tasks.scored_weights import class_names_to_score
from utils.tasks.scoring import predictions
from utils.training.metrics import AccuracyMeter, MeanMeter
from utils.training.precision import Precision
from utils.training.state import Goal

HEAD = "cls"


class ClassifyTask(FinetuneTask):
    """MultiViT with a linear head; cross-entropy, with soft targets where images are mixed."""

    def __init__(
        self,
        model: MultiViT,
        inputs: Sequence[Modality],
        classes: ClassIndex,
        options: ClsDataOptions,
    ) -> None:
        """Set up mixing and erasing as ``options`` say."""
        super().__init__(model, inputs)
        self.classes, self.smoothing = classes, options.smoothing
        self.mixup: Any = _mixup(options, len(classes)) if options.mixes else None
        self.reprob, self.remode, self.recount = options.reprob, options.remode, options.recount

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Cross-entropy of the augmented batch."""
        x = self.prepare(batch)
        device = next(iter(x.values())).device
        labels = self.classes.ids(batch.names, device)
        if self.reprob > 0:
            x = {m.name: self._erase(x[m.name]) if m.is_photo else x[m.name] for m in self.inputs}
        if self.mixup is not None:
            x, soft = mix(self.mixup, x, labels, self.inputs)
            logits = self.predict(x)[HEAD].float()
            return StepOutput(-(soft * logits.log_softmax(dim=1)).sum(dim=1).mean(), {})
        logits = self.predict(x)[HEAD].float()
        return StepOutput(F.cross_entropy(logits, labels, label_smoothing=self.smoothing), {})

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


class AccuracyEvaluator:
    """Accuracy of the best and of the five best classes over a whole set."""

    def __init__(
        self,
        task: ClassifyTask,
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
        """``{split}/acc1``, ``acc5`` (percent) and ``loss``."""
        accuracy = AccuracyMeter(device=self.world.device)
        mean = MeanMeter(["loss"], self.world.device)
        device = self.world.device
        for batch, outputs in predictions(self.task, model, self.loader, self.precision, device):
            logits, labels = outputs[HEAD], self.task.classes.ids(batch.names, device)
            accuracy.update(logits, labels)
            mean.update({"loss": F.cross_entropy(logits, labels, reduction="none")})
        for meter in (accuracy, mean):
            meter.load(self.world.sum(meter.state()))
        values = {**accuracy.compute(), **mean.compute()}
        return {f"{self.split}/{name}": value for name, value in values.items()}


class ClassPictures(Pictures):
    """Draws the inputs of a fixed batch with predicted and true class below."""

    def __init__(
        self, task: ClassifyTask, batch: Batch, precision: Precision, device: torch.device,
        split: str, logger: RunLogger,
    ) -> None:  # fmt: skip
        """Draw ``batch``."""
        self.task, self.batch, self.logger = task, batch, logger
        self.precision, self.device, self.split = precision, device, split

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Send the picture to the logger; no numbers."""
        x = self.task.prepare(self.batch.to(self.device))
        with self.precision.autocast():
            logits = self.task.predict(x, model)[HEAD].float()
        shares, guesses = logits.softmax(dim=1).max(dim=1)
        names, truth = self.task.classes.names, self.task.classes.ids(self.batch.names)
        captions = [
            f"{'right' if guess == true else 'wrong'}: {names[guess]} ({share:.0%}), "
            f"truth: {names[true]}"
            for guess, share, true in zip(
                guesses.tolist(), shares.tolist(), truth.tolist(), strict=True
            )
        ]
        columns = {m.name: [to_picture(row, m) for row in x[m.name]] for m in self.task.inputs}
        grid = prediction_grid(columns, captions=captions)
        self.logger.picture(f"predictions_{self.split}", step, grid)
        return {}


class Classification(Finetuning):
    """Image classification, scored by top-1 accuracy."""

    goal = Goal("eval/acc1")

    def __init__(self, cfg: ClsConfig, world: World) -> None:
        """Choose the rows, and find the classes.

        They are the folders of the training set, or in scoring what the weights name, if they do.
        """
        self.cfg, self.world = cfg, world
        self.inputs = select(cfg.table(), cfg.in_names)
        named = class_names_to_score(cfg, HEAD) if cfg.scores_only else ()
        self.classes = (
            ClassIndex(named) if named else find_classes(self.folder, cfg.data.nb_classes)
        )

    @cached_property
    def folder(self) -> MultiModalFolder:
        """Training images."""
        return self._folder(self.cfg.data.data_path, skip_bad=self.cfg.data.skips_bad)

    def train_set(self) -> MultiModalDataset:
        """Augmented samples of ``--data_path``, checked."""
        data = self.cfg.data
        transform = ClassTrainTransform(
            self.inputs, self.cfg.model.input_size, data.aa, data.color_jitter
        )
        return self._dataset(self.folder, transform, None, train=True)

    def build_task(self) -> ClassifyTask:
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
        return ClassifyTask(built, self.inputs, self.classes, self.cfg.data)

    def evaluators(
        self, split: Split, task: FinetuneTask, precision: Precision, logger: RunLogger
    ) -> list[Evaluator]:
        """Accuracy and pictures of a split; none without images."""
        data, log = self.cfg.data, self.cfg.log
        path = data.eval_data_path if split == "eval" else data.test_data_path
        if not path or not isinstance(task, ClassifyTask):
            return []
        folder = self._folder(path)
        check_classes(folder, self.classes)
        size, crop = self.cfg.model.input_size, self._crop_pct
        limit = data.max_val_images if split == "eval" else None
        dataset = self._dataset(folder, ClassEvalTransform(self.inputs, size, crop), limit)
        loader = eval_loader(dataset, self.cfg, self.world)
        evaluators: list[Evaluator] = [
            AccuracyEvaluator(task, loader, self.world, precision, split)
        ]
        if log.num_pictures and self.world.is_main:
            batch = collate([dataset[key] for key in spread_keys(dataset, log.num_pictures)])
            evaluators.append(
                ClassPictures(task, batch, precision, self.world.device, split, logger)
            )
        return evaluators

    @property
    def _crop_pct(self) -> float:
        """Share of the largest square's sides that evaluation sees."""
        return self.cfg.data.crop_pct or DEFAULT_CROP_PCT

    def _folder(self, path: str, skip_bad: bool = False) -> MultiModalFolder:
        root = data_root(path, self.inputs)
        return MultiModalFolder(root, self.inputs, skip_incomplete=skip_bad)

    def _dataset(
        self,
        folder: MultiModalFolder,
        transform: JointTransform,
        limit: int | None,
        train: bool = False,
    ) -> MultiModalDataset:
        skip_bad = train and self.cfg.data.skips_bad
        dataset = MultiModalDataset(
            folder,
            transform,
            seed=self.cfg.runtime.seed,
            patch_size=self.cfg.model.patch_size,
            limit=limit,
            skip_bad=skip_bad,
            fast_decode=train and self.cfg.data.fast_decode,
        )
        check_samples(dataset, CHECKED_SAMPLES, self.cfg.data.max_bad_samples)
        return dataset
