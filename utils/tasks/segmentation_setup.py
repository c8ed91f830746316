"""From the semantic segmentation configuration to data, task and evaluators."""

from __future__ import annotations

from multimae.specs.heads import HeadSpec
from multimae.specs.modalities import Modality, select
from utils.config.finetune_options import Split
from utils.config.semseg_options import MASK_VALID, SemsegConfig
from utils.data.batches import collate
from utils.data.dataset import check_samples
from utils.data.dense_transforms import SegEvalTransform, SegTrainTransform
from utils.data.folders import MultiModalFolder, read_class_names
from utils.data.sets.label_maps import SegmentationDataset, reduced_class_names, stored_target
from utils.data.transforms import JointTransform
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
from utils.tasks.segmentation import HEAD, SegmentationEvaluator, SegmentationPictures, SegmentTask
from utils.training.precision import Precision
from utils.training.state import Goal


class Segmentation(Finetuning):
    """Semantic segmentation, scored by mean IoU."""

    goal = Goal("eval/mean_iou")

    def __init__(self, cfg: SemsegConfig, world: World) -> None:
        """Choose the rows to read.

        Raises:
            UserError: ``use_mask_valid`` without an input that it could be about.
        """
        self.cfg, self.world = cfg, world
        data = cfg.data
        self.inputs = select(cfg.table(), cfg.in_names)
        root = data.data_path
        if cfg.scores_only:
            root = (data.test_data_path if cfg.start.test else data.eval_data_path) or ""
        names = reduced_class_names(
            read_class_names(root), data.num_classes, data.seg_reduce_zero_label
        )
        self.target = data.target(names)
        self.valid: Modality | None = None
        if data.use_mask_valid and any(m.plot == "scalar" for m in self.inputs):
            self.valid = Modality(
                MASK_VALID, num_channels=1, interpolation="nearest", plot="scalar"
            )

    def train_set(self) -> SegmentationDataset:
        """Augmented samples of ``--data_path``, checked."""
        rows = self._rows()
        transform = SegTrainTransform(rows, self.cfg.model.input_size)
        data = self.cfg.data
        return self._dataset(data.data_path, transform, None, train=True)

    def build_task(self) -> SegmentTask:
        """Model with the head of the options.

        Raises:
            UserError: Options that no model can be built from.
        """
        cfg, data = self.cfg, self.cfg.data
        channels = data.num_classes + int(data.seg_use_void_label)
        model = build_model(
            cfg,
            self.inputs,
            [HeadSpec(HEAD, self.target, channels, cfg.model.head)],
            resize_mode="pad",
            learnable_pos_emb=cfg.model.learnable_pos_emb,
        )
        return SegmentTask(
            model,
            self.inputs,
            self.target,
            zero_is_void=data.seg_reduce_zero_label,
            learn_void=data.seg_use_void_label,
            valid_name=self.valid.name if self.valid else None,
        )

    def evaluators(
        self, split: Split, task: FinetuneTask, precision: Precision, logger: RunLogger
    ) -> list[Evaluator]:
        """MIoU and pictures of a split; none without images."""
        cfg = self.cfg
        path = cfg.data.eval_data_path if split == "eval" else cfg.data.test_data_path
        if not path:
            return []
        if not isinstance(task, SegmentTask):
            raise TypeError(f"expected a SegmentTask, got {type(task).__name__}")
        limit = cfg.data.max_val_images if split == "eval" else None
        dataset = self._dataset(path, SegEvalTransform(self._rows(), cfg.model.input_size), limit)
        loader = eval_loader(dataset, cfg, self.world)
        output_dir = cfg.checkpoint.output_dir
        evaluators: list[Evaluator] = [
            SegmentationEvaluator(task, loader, self.world, precision, split, output_dir)
        ]
        if cfg.log.num_pictures and self.world.is_main:
            batch = collate([dataset[key] for key in spread_keys(dataset, cfg.log.num_pictures)])
            evaluators.append(
                SegmentationPictures(task, batch, precision, self.world.device, split, logger)
            )
        return evaluators

    def _rows(self) -> list[Modality]:
        extra = [self.valid] if self.valid else []
        return [*self.inputs, *extra, stored_target(self.target)]

    def _dataset(
        self, path: str, transform: JointTransform, limit: int | None, train: bool = False
    ) -> SegmentationDataset:
        cfg = self.cfg
        skip_bad = train and cfg.data.skips_bad
        dataset = SegmentationDataset(
            MultiModalFolder(path, transform.modalities, skip_incomplete=skip_bad),
            transform,
            stored_target(self.target),
            num_classes=cfg.data.num_classes,
            zero_is_void=cfg.data.seg_reduce_zero_label,
            seed=cfg.runtime.seed,
            patch_size=cfg.model.patch_size,
            limit=limit,
            skip_bad=skip_bad,
            fast_decode=train and cfg.data.fast_decode,
        )
        check_samples(dataset, CHECKED_SAMPLES, cfg.data.max_bad_samples)
        return dataset
