"""Monocular depth (NYUv2): targets in millimetres, validity, metrics; data of the script."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from multimae.images.pixels import Pixels
from multimae.specs.modalities import Modality, select
from utils.config.depth_options import MASK_VALID, TARGET, DepthConfig
from utils.config.finetune_options import Split
from utils.data.batches import Batch, collate
from utils.data.dataset import MultiModalDataset, check_samples
from utils.data.dense_transforms import DepthTrainTransform
from utils.data.folders import MultiModalFolder
from utils.data.transforms import EvalTransform, JointTransform
from utils.distributed.world import World
from utils.logs.logger import RunLogger
from utils.tasks.base import Evaluator
from utils.tasks.finetuning import (
    CHECKED_SAMPLES,
    FinetuneTask,
    Finetuning,
    build_model,
    eval_loader,
)
from utils.tasks.reconstruction import spread_keys
from utils.tasks.regression import RegressionPictures, RegressTask, Target
from utils.tasks.scoring import predictions
from utils.training.metrics import DepthMeter
from utils.training.precision import Precision
from utils.training.state import Goal

HEAD = "depth"
HALF = 127  # of mask_valid, which is 0 or 255


class DepthTask(RegressTask):
    """One head that predicts normalised depth."""

    def valid(self, batch: Batch) -> Tensor:
        """Where mask_valid says so, or where depth is not 0 without it."""
        (target,) = self.targets
        mask = batch.images.get(MASK_VALID)
        return batch.images[target.row.name] != 0 if mask is None else mask > HALF

    def millimetres(self, x: Tensor) -> Tensor:
        """Normalised depth in mm."""
        row = self.targets[0].row
        return (x.float() * row.std[0] + row.mean[0]) * row.max_value


class DepthDataset(MultiModalDataset):
    """Samples of a folder, of which each must have valid depth."""

    def _read(self, index: int, thorough: bool = False) -> tuple[dict[str, Pixels], list[str]]:
        pixels, problems = super()._read(index, thorough)
        if problems:
            return pixels, problems
        paths = {m.name: self.folder.path(index, m) for m in self.folder.modalities}
        valid = measured = np.asarray(pixels[TARGET]) > 0
        if MASK_VALID in pixels:
            valid = np.asarray(pixels[MASK_VALID]) > HALF
            empty = valid & ~measured if valid.shape == measured.shape else np.zeros(1, bool)
            if empty.any():
                problems = [
                    f"{paths[TARGET]}: the depth of {empty.sum()} pixels is 0, but "
                    f"{paths[MASK_VALID]} marks them as valid. Clear them there."
                ]
        if not valid.any():
            problems = [
                f"{paths.get(MASK_VALID, paths[TARGET])}: no pixel has a valid depth. "
                "Remove the sample."
            ]
        return pixels, problems


class DepthEvaluator:
    """Depth metrics over all valid pixels of a set (SPEC section 6)."""

    def __init__(
        self,
        task: DepthTask,
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
        """``{split}/delta_1..3``, ``rel``, ``srel``, ``rmse`` (mm), ``log10``."""
        meter = DepthMeter(self.world.device)
        task, (target,) = self.task, self.task.targets
        device = self.world.device
        for batch, preds in predictions(task, model, self.loader, self.precision, device):
            truth = batch.images[target.row.name].float()
            meter.update(task.millimetres(preds[target.head]), truth, task.valid(batch))
        meter.load(self.world.sum(meter.state()))
        return {f"{self.split}/{name}": value for name, value in meter.compute().items()}


class DepthFinetuning(Finetuning):
    """Depth estimation; the best checkpoint has the lowest rmse."""

    goal = Goal("eval/rmse", higher_is_better=False)

    def __init__(self, cfg: DepthConfig, world: World) -> None:
        """Choose the rows to read."""
        self.cfg, self.world = cfg, world
        self.inputs = select(cfg.table(), cfg.in_names)
        self.target = Target(HEAD, cfg.data.target(), 1, "mm")
        self.rows = [*self.inputs, self.target.row]
        if cfg.data.use_mask_valid:
            self.rows.append(
                Modality(MASK_VALID, num_channels=1, interpolation="nearest", plot="scalar")
            )

    def train_set(self) -> DepthDataset:
        """Augmented samples of ``--data_path``, checked."""
        data = self.cfg.data
        transform = DepthTrainTransform(
            self.rows, self.cfg.model.input_size, colour=data.color_augs
        )
        return self._dataset(data.data_path, transform, data.max_train_images, train=True)

    def build_task(self) -> DepthTask:
        """Model with the head of the options."""
        model = self.cfg.model
        built = build_model(
            self.cfg,
            self.inputs,
            [self.target.head_spec(model.head)],
            resize_mode="whole",
            learnable_pos_emb=model.learnable_pos_emb,
        )
        return DepthTask(built, self.inputs, [self.target], self.cfg.optim.loss)

    def evaluators(
        self, split: Split, task: FinetuneTask, precision: Precision, logger: RunLogger
    ) -> list[Evaluator]:
        """Depth metrics and pictures of a split; none without images."""
        data, log = self.cfg.data, self.cfg.log
        path = data.eval_data_path if split == "eval" else data.test_data_path
        if not path or not isinstance(task, DepthTask):
            return []
        limit = data.max_val_images if split == "eval" else data.max_test_images
        dataset = self._dataset(path, EvalTransform(self.rows, self.cfg.model.input_size), limit)
        loader = eval_loader(dataset, self.cfg, self.world)
        scores = DepthEvaluator(task, loader, self.world, precision, split)
        evaluators: list[Evaluator] = [scores]
        if log.num_pictures and self.world.is_main:
            batch = collate([dataset[key] for key in spread_keys(dataset, log.num_pictures)])
            evaluators.append(
                RegressionPictures(task, batch, precision, self.world.device, split, logger)
            )
        return evaluators

    def _dataset(
        self, path: str, transform: JointTransform, limit: int | None, train: bool = False
    ) -> DepthDataset:
        skip_bad = train and self.cfg.data.skips_bad
        dataset = DepthDataset(
            MultiModalFolder(path, transform.modalities, skip_incomplete=skip_bad),
            transform,
            seed=self.cfg.runtime.seed,
            patch_size=self.cfg.model.patch_size,
            limit=limit,
            skip_bad=skip_bad,
            fast_decode=train and self.cfg.data.fast_decode,
        )
        check_samples(dataset, CHECKED_SAMPLES, self.cfg.data.max_bad_samples)
        return dataset
