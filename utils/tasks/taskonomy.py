"""Taskonomy's dense tasks: valid pixels, and the setup of the script."""

from __future__ import annotations

from torch import Tensor

from multimae.images.folders import MultiModalFolder
from multimae.images.pack import to_path
from multimae.inference.truth import BLURRED, MASK_VALID, blur_edges, mask_modality, valid_taskonomy
from utils.config.finetune_options import Split
from utils.config.taskonomy_options import TaskonomyConfig
from utils.data.batches import Batch
from utils.data.dataset import MultiModalDataset
from utils.data.sets.taskonomy_views import (
    TASKS,
    VALID,
    Subset,
    TaskonomyDataset,
    TaskonomyFolder,
    buildings_of,
    listed_views,
)
from utils.data.transforms import EvalTransform, JointTransform
from utils.distributed.world import World
from utils.tasks.finetuning import Finetuning, build_model
from utils.tasks.loaders import build_dataset, open_train_folder
from utils.tasks.regression import L1Evaluator, RegressionPictures, RegressionTask, Target
from utils.training.state import Goal


class TaskonomyTask(RegressionTask):
    """One head per task; pixels count where the z-buffer is valid."""

    def valid(self, batch: Batch) -> Tensor:
        """Valid pixels from ``mask_valid``, or from the z-buffer without such files."""
        return valid_taskonomy(batch.images.get(VALID), batch.images.get(MASK_VALID))

    def truth(self, batch: Batch) -> dict[str, Tensor]:
        """Normalised ground truth by head; edge_occlusion is blurred (3 x 3 Gaussian, sigma 1)."""
        truth = super().truth(batch)
        if BLURRED in truth:
            truth[BLURRED] = blur_edges(truth[BLURRED])
        return truth


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
        roots = (*cfg.data.roots, cfg.data.eval_data_path, cfg.data.test_data_path)
        masked = all((to_path(root) / MASK_VALID).is_dir() for root in roots if root)
        mask = mask_modality()
        valid = mask if masked else TASKS[VALID][0]
        read = [*self.inputs, *(target.modality for target in self.targets), valid]
        self.modalities = list({m.name: m for m in reversed(read)}.values())

    def train_set(self) -> MultiModalDataset:
        """Views of the training buildings, checked."""
        data = self.cfg.data
        transform = EvalTransform(self.modalities, self.cfg.model.input_size)
        folder = open_train_folder(
            self.cfg, lambda root: self._folder(root, "train", data.max_train_images)
        )
        return self._dataset(folder, transform, train=True)

    def eval_set(self, split: Split) -> MultiModalDataset:
        """Views of the validation or test buildings, checked."""
        data = self.cfg.data
        transform = EvalTransform(self.modalities, self.cfg.model.input_size)
        if split == "eval":
            path, limit = data.eval_data_path, data.max_val_images
        else:
            path, limit = data.test_data_path, data.max_test_images
        (path,) = (path,) if path else data.roots  # options refuse several
        subset: Subset = "val" if split == "eval" else "test"
        return self._dataset(self._folder(path, subset, limit), transform)

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

    def _folder(self, root: str, subset: Subset, limit: int | None) -> TaskonomyFolder:
        return TaskonomyFolder(
            root,
            self.modalities,
            buildings_of(root, subset, self.cfg.data.taskonomy_splits),
            limit,
            views=listed_views(root, subset),
            skip_incomplete=subset == "train" and self.cfg.data.skips_bad,
            find=self.find_index,
        )

    def _dataset(
        self, folder: MultiModalFolder, transform: JointTransform, train: bool = False
    ) -> MultiModalDataset:
        return build_dataset(
            TaskonomyDataset, self.cfg, folder, transform, world=self.world, train=train
        )
