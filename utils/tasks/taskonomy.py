"""Taskonomy's dense tasks: validity of pixels, and the setup of the script."""

from __future__ import annotations

from torch import Tensor

from utils.config.finetune_options import Split
from utils.config.taskonomy_options import TaskonomyConfig
from utils.data.batches import Batch
from utils.data.dataset import MultiModalDataset
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
from utils.tasks.finetuning import Finetuning, build_model
from utils.tasks.loaders import build_dataset
from utils.tasks.regression import L1Evaluator, RegressionPictures, RegressionTask, Target
from utils.training.state import Goal


class TaskonomyTask(RegressionTask):
    """One head per task; pixels count where the z-buffer is valid."""

    def valid(self, batch: Batch) -> Tensor:
        """Neither saturated nor next to a saturated pixel."""
        return valid_pixels(batch.images[VALID])


class TaskonomyFinetuning(Finetuning[RegressionTask]):
    """Taskonomy tasks; the best checkpoint has the lowest mean absolute error."""

    cfg: TaskonomyConfig
    goal = Goal("eval/l1", higher_is_better=False)
    scores = L1Evaluator
    pictures = RegressionPictures

    def __init__(self, cfg: TaskonomyConfig, world: World) -> None:
        """Select the modalities to read."""
        super().__init__(cfg, world)
        self.targets = [Target(name, *TASKS[name]) for name in cfg.data.out_names]
        read = [*self.inputs, *(target.modality for target in self.targets), TASKS[VALID][0]]
        self.modalities = list({m.name: m for m in reversed(read)}.values())

    def train_set(self) -> MultiModalDataset:
        """Augmented views of the training buildings, checked."""
        data = self.cfg.data
        transform = DepthTrainTransform(self.modalities, self.cfg.model.input_size)
        return self._dataset(data.data_path, "train", transform, data.max_train_images)

    def eval_set(self, split: Split) -> MultiModalDataset:
        """Views of the validation or test buildings, checked."""
        data = self.cfg.data
        transform = EvalTransform(self.modalities, self.cfg.model.input_size)
        if split == "eval":
            path = data.eval_data_path or data.data_path
            return self._dataset(path, "val", transform, data.max_val_images)
        path = data.test_data_path or data.data_path
        return self._dataset(path, "test", transform, data.max_test_images)

    def build_task(self) -> TaskonomyTask:
        """Model with one DPT head per task."""
        model = self.cfg.model
        built = build_model(
            self.cfg,
            self.inputs,
            [target.head_spec(model.head) for target in self.targets],
            resize_mode="crop",
            learnable_pos_emb=model.learnable_pos_emb,
        )
        return TaskonomyTask(built, self.inputs, self.targets, "l1")

    def _dataset(
        self, root: str, subset: Subset, transform: JointTransform, limit: int | None
    ) -> MultiModalDataset:
        train = subset == "train"
        folder = TaskonomyFolder(
            root,
            transform.modalities,
            buildings_of(root, subset, self.cfg.data.taskonomy_splits),
            limit,
            skip_incomplete=train and self.cfg.data.skips_bad,
        )
        return build_dataset(TaskonomyDataset, self.cfg, folder, transform, train=train)
