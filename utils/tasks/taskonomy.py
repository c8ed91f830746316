"""Taskonomy's dense tasks: validity, data and evaluators of the script."""

from __future__ import annotations

from torch import Tensor

from multimae.specs.modalities import select
from utils.config.finetune_options import Split
from utils.config.taskonomy_options import TaskonomyConfig
from utils.data.batches import Batch, collate
from utils.data.dataset import MultiModalDataset, check_samples
from utils.data.dense_transforms import DepthTrainTransform
from utils.data.sets.taskonomy_views import (
    TASKS,
    VALID,
    Subset,
    TaskonomyDataset,
    TaskonomyFolder,
    buildings_of,
    valid_pixels,
)
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
from utils.tasks.regression import L1Evaluator, RegressionPictures, RegressTask, Target
from utils.training.precision import Precision
from utils.training.state import Goal


class TaskonomyTask(RegressTask):
    """One head per task; pixels count where the z-buffer is valid."""

    def valid(self, batch: Batch) -> Tensor:
        """Not saturated, nor near what is."""
        return valid_pixels(batch.images[VALID])


class Taskonomy(Finetuning):
    """Taskonomy tasks; the best checkpoint has the lowest mean absolute error."""

    goal = Goal("eval/l1", higher_is_better=False)

    def __init__(self, cfg: TaskonomyConfig, world: World) -> None:
        """Choose the rows to read."""
        self.cfg, self.world = cfg, world
        self.inputs = select(cfg.table(), cfg.in_names)
        self.targets = [Target(name, *TASKS[name]) for name in cfg.data.out_names]
        rows = [*self.inputs, *(target.row for target in self.targets), TASKS[VALID][0]]
        self.rows = list({row.name: row for row in reversed(rows)}.values())

    def train_set(self) -> MultiModalDataset:
        """Augmented views of the training buildings, checked."""
        data = self.cfg.data
        transform = DepthTrainTransform(self.rows, self.cfg.model.input_size)
        return self._dataset(data.data_path, "train", transform, data.max_train_images, train=True)

    def build_task(self) -> TaskonomyTask:
        """Model with one DPT head per task."""
        model = self.cfg.model
        built = build_model(
            self.cfg,
            self.inputs,
            [target.head_spec(model.head) for target in self.targets],
            resize_mode="whole",
            learnable_pos_emb=model.learnable_pos_emb,
        )
        return TaskonomyTask(built, self.inputs, self.targets, "l1")

    def evaluators(
        self, split: Split, task: FinetuneTask, precision: Precision, logger: RunLogger
    ) -> list[Evaluator]:
        """Errors and pictures of a split."""
        data, log = self.cfg.data, self.cfg.log
        if not isinstance(task, TaskonomyTask):
            raise TypeError(f"expected a TaskonomyTask, got {type(task).__name__}")
        subset: Subset = "val" if split == "eval" else "test"
        path = data.eval_data_path if split == "eval" else data.test_data_path
        limit = data.max_val_images if split == "eval" else data.max_test_images
        transform = EvalTransform(self.rows, self.cfg.model.input_size)
        dataset = self._dataset(path or data.data_path, subset, transform, limit)
        loader = eval_loader(dataset, self.cfg, self.world)
        evaluators: list[Evaluator] = [L1Evaluator(task, loader, self.world, precision, split)]
        if log.num_pictures and self.world.is_main:
            batch = collate([dataset[key] for key in spread_keys(dataset, log.num_pictures)])
            evaluators.append(
                RegressionPictures(task, batch, precision, self.world.device, split, logger)
            )
        return evaluators

    def _dataset(
        self,
        root: str,
        subset: Subset,
        transform: JointTransform,
        limit: int | None,
        train: bool = False,
    ) -> MultiModalDataset:
        cfg = self.cfg
        skip_bad = train and cfg.data.skips_bad
        buildings = buildings_of(root, subset, cfg.data.taskonomy_splits)
        dataset = TaskonomyDataset(
            TaskonomyFolder(root, transform.modalities, buildings, limit, skip_incomplete=skip_bad),
            transform,
            seed=cfg.runtime.seed,
            patch_size=cfg.model.patch_size,
            skip_bad=skip_bad,
            fast_decode=train and cfg.data.fast_decode,
        )
        check_samples(dataset, CHECKED_SAMPLES, cfg.data.max_bad_samples)
        return dataset
