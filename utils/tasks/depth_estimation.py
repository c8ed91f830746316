"""Monocular depth (NYUv2): validity, metrics in millimetres, and the setup of the script."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from multimae.images.folders import MultiModalFolder
from multimae.images.pixels import Pixels
from multimae.inference.metrics import DepthMeter
from multimae.specs.modalities import Modality
from utils.config.depth_options import MASK_VALID, TARGET, DepthConfig
from utils.config.finetune_options import Split
from utils.data.batches import Batch
from utils.data.dataset import MultiModalDataset
from utils.data.dense_transforms import DepthTrainTransform
from utils.data.sets.label_maps import read_validity
from utils.data.transforms import EvalTransform, JointTransform
from utils.distributed.world import World
from utils.tasks.finetuning import Finetuning, SplitEvaluator, build_model
from utils.tasks.loaders import build_dataset
from utils.tasks.regression import RegressionPictures, RegressionTask, Target
from utils.training.state import Goal

HEAD = "depth"
MASK_THRESHOLD = 127  # mask_valid is 0 or 255


class DepthTask(RegressionTask):
    """One head that predicts normalised depth."""

    def valid(self, batch: Batch) -> Tensor:
        """Pixels set in mask_valid; without such files, pixels with non-zero depth."""
        (target,) = self.targets
        mask = batch.images.get(MASK_VALID)
        return batch.images[target.modality.name] != 0 if mask is None else mask > MASK_THRESHOLD


class DepthDataset(MultiModalDataset):
    """Samples with depth; each must have at least one valid pixel."""

    def _read(self, index: int, thorough: bool = False) -> tuple[dict[str, Pixels], list[str]]:
        pixels, problems = super()._read(index, thorough)
        problems = problems or read_validity(self.folder, index, pixels)
        if problems:
            return pixels, problems
        paths = {m.name: self.folder.path(index, m) for m in self.folder.modalities}
        valid = measured = np.asarray(pixels[TARGET]) > 0
        if MASK_VALID in pixels:
            valid = np.asarray(pixels[MASK_VALID]) > MASK_THRESHOLD
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


class DepthEvaluator(SplitEvaluator[RegressionTask]):
    """Depth metrics over all valid pixels of a split (SPEC section 6)."""

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """``{split}/delta_1..3``, ``rel``, ``srel``, ``rmse`` (mm), ``log10``."""
        meter = DepthMeter(self.world.device)
        task, (target,) = self.task, self.task.targets
        for batch, preds in self.predictions(model):
            truth = batch.images[target.modality.name].float()
            meter.update(target.unnormalize(preds[target.head]), truth, task.valid(batch))
        return self.reduce(meter)


class DepthFinetuning(Finetuning[RegressionTask]):
    """Depth estimation; the best checkpoint has the lowest RMSE."""

    cfg: DepthConfig
    goal = Goal("eval/rmse", higher_is_better=False)
    scores = DepthEvaluator
    pictures = RegressionPictures

    def __init__(self, cfg: DepthConfig, world: World) -> None:
        """Select the modalities to read."""
        super().__init__(cfg, world)
        self.target = Target(HEAD, cfg.data.target(), 1, "mm")
        self.modalities = [*self.inputs, self.target.modality]
        if cfg.data.use_mask_valid:
            self.modalities.append(
                Modality(MASK_VALID, num_channels=1, interpolation="nearest", plot="scalar")
            )

    def train_set(self) -> DepthDataset:
        """Augmented samples of ``--data_path``, checked."""
        data = self.cfg.data
        transform = DepthTrainTransform(
            self.modalities, self.cfg.model.input_size, colour=data.color_augs
        )
        return self._dataset(data.data_path, transform, data.max_train_images, train=True)

    def build_task(self) -> DepthTask:
        """Model with the head of the options."""
        model = self.cfg.model
        built = build_model(
            self.cfg,
            self.inputs,
            [self.target.head_spec(model.head)],
            resize_mode="crop",
            learnable_pos_emb=model.learnable_pos_emb,
        )
        return DepthTask(built, self.inputs, [self.target], self.cfg.optim.loss)

    def eval_set(self, split: Split) -> DepthDataset | None:
        """Resized samples of a split, checked."""
        data = self.cfg.data
        path, limit = (
            (data.eval_data_path, data.max_val_images)
            if split == "eval"
            else (data.test_data_path, data.max_test_images)
        )
        transform = EvalTransform(self.modalities, self.cfg.model.input_size)
        return self._dataset(path, transform, limit) if path else None

    def _dataset(
        self, path: str, transform: JointTransform, limit: int | None, train: bool = False
    ) -> DepthDataset:
        skip = train and self.cfg.data.skips_bad
        folder = MultiModalFolder(path, transform.modalities, skip_incomplete=skip)
        return build_dataset(DepthDataset, self.cfg, folder, transform, train=train, limit=limit)
