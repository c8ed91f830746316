"""Monocular depth (NYUv2): validity, metrics in millimetres, and the setup of the script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from multimae.images.folders import MultiModalFolder
from multimae.images.pack import AnyPath
from multimae.images.pixels import Pixels
from multimae.inference.truth import (
    MASK_THRESHOLD,
    MASK_VALID,
    DepthScores,
    depth_problem,
    mask_modality,
    valid_depth,
)
from multimae.specs.errors import UserError
from multimae.specs.heads import MM_PER_M
from utils.checkpoint.trained_inputs import with_trained_options
from utils.config.depth_options import TARGET, DepthConfig
from utils.config.finetune_options import Split
from utils.data.batches import Batch
from utils.data.dataset import MultiModalDataset
from utils.data.dense_transforms import DepthTrainTransform
from utils.data.sets.label_maps import read_validity
from utils.data.transforms import EvalTransform, JointTransform
from utils.distributed.world import World
from utils.tasks.finetuning import Finetuning, SplitEvaluator, build_model
from utils.tasks.loaders import build_dataset, open_train_folder
from utils.tasks.regression import RegressionPictures, RegressionTask, Target
from utils.training.state import Goal

HEAD = "depth"


class DepthTask(RegressionTask):
    """One head that predicts normalised depth."""

    def valid(self, batch: Batch) -> Tensor:
        """Pixels of measured depth (finite, above 0, not ``no_data``) that mask_valid keeps."""
        (target,) = self.targets
        raw, mask = batch.images[target.modality.name], batch.images.get(MASK_VALID)
        return valid_depth(raw, target.modality, mask)


class DepthDataset(MultiModalDataset):
    """Samples with depth; each must have at least one valid pixel."""

    def _read(self, index: int, thorough: bool = False) -> tuple[dict[str, Pixels], list[str]]:
        pixels, problems = super()._read(index, thorough)
        problems = [
            f"{p} If it is depth in metres, set --depth_scale 1." if "storage: float" in p else p
            for p in problems
        ] or read_validity(self.folder, index, pixels)
        if problems:
            return pixels, problems
        paths = {m.name: self.folder.path(index, m) for m in self.folder.modalities}
        (target,) = (m for m in self.folder.modalities if m.name == TARGET)
        depth = np.asarray(pixels[TARGET])
        valid = measured = (depth > 0) & np.isfinite(depth) & (depth != target.no_data)
        if MASK_VALID in pixels:
            valid = np.asarray(pixels[MASK_VALID]) > MASK_THRESHOLD
            empty = valid & ~measured if valid.shape == measured.shape else np.zeros(1, bool)
            if empty.any():
                problems = [
                    f"{paths[TARGET]}: the depth of {empty.sum()} pixels is 0 or missing, but "
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

    by_pixel = True

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """``{split}/delta_1..3``, ``rel``, ``srel``, ``rmse`` (mm), ``log10``."""
        task, (target,) = self.task, self.task.targets
        scores = DepthScores(target.modality, target.scale, self.world.device)
        for batch, preds in self.predictions(model):
            truth = batch.images[target.modality.name]
            scores.update(preds[target.head], truth, task.valid(batch))
        return self.reduce(*scores.meters)


class DepthFinetuning(Finetuning[RegressionTask]):
    """Depth estimation; the best checkpoint has the lowest RMSE."""

    cfg: DepthConfig
    goal = Goal("eval/rmse", higher_is_better=False)
    scores = DepthEvaluator
    pictures = RegressionPictures

    def __init__(self, cfg: DepthConfig, world: World) -> None:
        """Select the modalities to read."""
        super().__init__(cfg, world)
        self.cfg = cfg = self._with_trained_target()
        target = cfg.data.target()
        if not cfg.data.declares_no_data:  # a TIFF tag, else NaN
            (tagged,) = self.with_no_data([replace(target, no_data=None)])
            target = target if tagged.no_data is None else tagged
        scale, masked = cfg.data.depth_scale, cfg.data.use_mask_valid
        self.target = Target(HEAD, target, 1, "m", scale, masked)
        self.modalities = [*self.inputs, self.target.modality]
        if cfg.data.use_mask_valid:
            self.modalities.append(mask_modality())

    def _with_trained_target(self) -> DepthConfig:
        """Take scale, mean and deviation of the target from the weights to score.

        Raises:
            UserError: Options contradict them, without ``--override_inputs``.
        """
        head = self.trained_head(HEAD)
        if head is None or not head.unit:
            return self.cfg
        top_mm = head.target.max_value * head.scale * MM_PER_M
        trained = {
            "depth_scale": head.scale,
            "depth_mean": head.target.mean[0] * top_mm,
            "depth_std": head.target.std[0] * top_mm,
        }
        cfg, notes = with_trained_options(self.cfg, trained, self.source)
        self.notes += notes
        return cfg

    def describe(self, dataset: MultiModalDataset) -> Iterator[str]:
        """Add a warning about depth in an unlikely unit."""
        yield from super().describe(dataset)
        found = dataset.value_ranges.get(TARGET)
        if found is not None:
            data = self.cfg.data
            explicit = "depth_scale" in data.set_by_user
            yield from depth_warnings(
                found, data.depth_scale, dataset.folder.root, explicit=explicit
            )

    def train_set(self) -> DepthDataset:
        """Augmented samples of ``--data_path``, checked."""
        data = self.cfg.data
        transform = DepthTrainTransform(
            self.modalities,
            self.cfg.model.input_size,
            hflip=data.hflip,
            vflip=data.vflip,
            scales=data.scale_jitter,
            colour=data.color_augs,
        )
        folder = open_train_folder(self.cfg, lambda root: self._folder(root, train=True))
        return self._dataset(folder, transform, data.max_train_images, train=True)

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
        return self._dataset(self._folder(path), transform, limit) if path else None

    def _folder(self, path: str, train: bool = False) -> MultiModalFolder:
        skip = train and self.cfg.data.skips_bad
        return MultiModalFolder(path, self.modalities, skip_incomplete=skip, find=self.find_index)

    def _dataset(
        self,
        folder: MultiModalFolder,
        transform: JointTransform,
        limit: int | None,
        train: bool = False,
    ) -> DepthDataset:
        return build_dataset(
            DepthDataset, self.cfg, folder, transform, world=self.world, train=train, limit=limit
        )


def depth_warnings(
    found: tuple[float, float], scale: float, root: AnyPath, *, explicit: bool
) -> Iterator[str]:
    """Report true depth that ``scale``, in metres per stored unit, makes too near or far.

    Args:
        found: Least and largest stored value.
        scale: Metres per stored unit.
        root: Data root.
        explicit: The user set the scale: warn instead of raising.

    Raises:
        UserError: The depth is unlikely, without ``explicit``.
    """
    problem = depth_problem(found, scale)
    if problem:
        text = (
            f"the true depth of {root} {problem}. Set --depth_scale to the metres per stored "
            "unit: 0.001 for mm, 0.01 for cm, 1 for m."
        )
        if not explicit:
            raise UserError(text)
        yield f"warning: {text}"
