"""Fine-tuning: the run shared by the four scripts, and base classes of their tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from multimae.images.no_data_tags import with_no_data_tags
from multimae.images.preprocess import prepare
from multimae.inference.meters import Meter
from multimae.inference.predict import pad_batch
from multimae.multimae import MultiViT
from multimae.plotting.colours import Picture
from multimae.plotting.pictures import to_picture
from multimae.specs.errors import UserError
from multimae.specs.heads import HeadSpec, reads_all_layers
from multimae.specs.modalities import Modality, select
from multimae.specs.registry import MULTIVIT, encoder_shape
from multimae.specs.spec import ModelSpec, ResizeMode
from utils.checkpoint.find import best_checkpoint, newest_checkpoint
from utils.checkpoint.scored_weights import checkpoint_to_score, load_finetuned
from utils.checkpoint.start_weights import StartWeights
from utils.checkpoint.trained_inputs import trained_spec, with_trained_inputs
from utils.config.finetune_options import (
    DenseFinetuneConfig,
    FinetuneConfig,
    FinetuneOptimOptions,
    Split,
)
from utils.config.options import split_names
from utils.config.parse import to_flat_dict
from utils.data.batches import Batch, collate
from utils.data.dataset import MultiModalDataset
from utils.data.sample_checks import label_tables, overlap_warnings, range_warnings
from utils.data.samplers import EvalBatchSampler
from utils.distributed.world import World
from utils.logs.logger import RunLogger
from utils.logs.paths import locked_output_dir, record_start
from utils.tasks.base import Evaluator, PictureEvaluator, Task
from utils.tasks.job import Job, describe_model, report_end, save_weights, train
from utils.tasks.loaders import eval_loader, index_finder, spread_keys
from utils.training.ema import average
from utils.training.finetune_groups import finetune_no_decay, layer_lr_scale
from utils.training.loop import evaluate
from utils.training.optim import (
    build_optimizer,
    param_groups,
)
from utils.training.seeding import seed_everything
from utils.training.state import TrainState
from utils.training.stepper import Precision, choose_precision

if TYPE_CHECKING:
    from typing_extensions import Self

    from utils.tasks.tiled_evaluation import AugmentedEvaluation  # off by default


class FinetuneTask(Task):
    """MultiViT with heads, and its input modalities."""

    model: MultiViT
    class_weights: Tensor | None
    lora = frozen = False

    def __init__(self, model: MultiViT, inputs: Sequence[Modality]) -> None:
        """Wrap ``model`` with the input modalities ``inputs``."""
        super().__init__()
        self.model = model
        self.inputs = tuple(inputs)
        self._all_layers = reads_all_layers(model)
        self.set_class_weights(None)

    def set_class_weights(self, weights: Sequence[float] | None) -> None:
        """Weight the classes in cross-entropy; checkpoints store the weights."""
        tensor = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.register_buffer("class_weights", tensor)

    def total_weight(self, labels: Tensor, ignored: int = -1) -> Tensor:
        """Sum of the weights of the classes ``labels``; without weights, their number."""
        if self.class_weights is None:
            return (labels != ignored).sum()
        void = labels == ignored
        return self.class_weights[labels.masked_fill(void, 0)].masked_fill(void, 0.0).sum()

    def freeze(self, optim: FinetuneOptimOptions) -> None:
        """Freeze what the options say; add adapters with ``--lora_rank``."""
        if optim.lora_rank:
            from utils.training.lora import add_lora

            add_lora(self.model, optim.lora_rank)
        self.lora, self.frozen = optim.lora_rank > 0, optim.freeze_encoder
        for name, parameter in self.model.named_parameters():
            is_head = name.startswith("output_adapters.")
            in_block = name.startswith("encoder.")
            if (self.frozen and not is_head) or (optim.freeze_transformer and in_block):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch modes; a frozen encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.frozen:
            self.model.input_adapters.eval()
            self.model.encoder.eval()
        return self

    def extra_state_dict(self) -> dict[str, Any]:
        """Add the adapters of LoRA."""
        state = super().extra_state_dict()
        if self.lora:
            from utils.training.lora import adapter_state

            state |= adapter_state(self.model)
        return state

    def load_extra_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the class weights are the same; restore the adapters.

        Raises:
            ValueError: They differ.
        """
        own, saved = self.class_weights, state.get("class_weights")
        if own is not None and saved is not None and not torch.allclose(own.cpu(), saved.cpu()):
            worst = int((own.cpu() - saved.cpu()).abs().argmax())
            raise ValueError(
                f"class weights changed, of class {worst} from {saved[worst]:g} to {own[worst]:g}"
            )
        adapters = {key: value for key, value in state.items() if key.startswith("lora.")}
        super().load_extra_state_dict({k: v for k, v in state.items() if k not in adapters})
        if self.lora:
            from utils.training.lora import load_adapter_state

            load_adapter_state(self.model, adapters)

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Model inputs."""
        return prepare(batch.images, self.inputs)

    def predict(self, x: Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
        """Run all heads on prepared inputs.

        Args:
            x: Model inputs by modality; others are ignored.
            model: Model to use instead, such as the EMA.
        """
        chosen = self.model if model is None else model
        outputs: dict[str, Tensor] = chosen(x, return_all_layers=self._all_layers)
        return outputs


TaskT = TypeVar("TaskT", bound=FinetuneTask)


class SplitEvaluator(ABC, Generic[TaskT]):
    """Evaluates a split; results do not depend on the world size.

    Attributes:
        by_pixel: Whether pixels are scored one by one, so that an image can be scored in parts.
        augmented: Evaluation by tiles or with test-time augmentation; ``None``: neither.
    """

    by_pixel = False
    augmented: AugmentedEvaluation | None = None

    def __init__(
        self,
        task: TaskT,
        loader: DataLoader[Any],
        world: World,
        precision: Precision,
        split: Split,
        logger: RunLogger,
    ) -> None:
        """Evaluate ``loader``, this rank's shard of ``split``."""
        self.task, self.loader, self.world = task, loader, world
        self.precision, self.split, self.logger = precision, split, logger

    @abstractmethod
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Metrics ``{split}/...``, equal on all ranks."""

    def predictions(self, model: nn.Module) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        """Yield batches on the device with the float32 outputs of every head.

        Kernels, and thus rounding, depend on the batch size. Short batches are padded with copies,
        whose outputs are dropped, to get the same predictions for every world size.
        """
        sampler = self.loader.batch_sampler
        size = sampler.max_batch_size if isinstance(sampler, EvalBatchSampler) else 0

        def predict(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with self.precision.autocast():
                outputs = self.task.predict(x, model)
            return {name: y.float() for name, y in outputs.items()}

        for loaded in self.loader:
            batch: Batch = loaded.to(self.world.device)
            x = self.task.prepare(batch)
            if self.augmented is not None and self.augmented.tiles:
                yield from self.augmented.parts(predict, batch, x, by_pixel=self.by_pixel)
                continue
            x = {name: pad_batch(value, size) for name, value in x.items()}
            outputs = self.augmented.outputs(predict, x) if self.augmented else predict(x)
            yield batch, {name: y[: len(batch)] for name, y in outputs.items()}

    def reduce(self, *meters: Meter) -> dict[str, float]:
        """All-reduce the meters; return metrics with the split as prefix."""
        values: dict[str, float] = {}
        for meter in meters:
            meter.load(self.world.sum(meter.state()))
            values |= meter.compute()
        return {f"{self.split}/{name}": value for name, value in values.items()}


class PredictionPictures(PictureEvaluator, Generic[TaskT]):
    """Draws inputs, predictions and truth of a fixed batch."""

    def __init__(
        self,
        task: TaskT,
        batch: Batch,
        world: World,
        precision: Precision,
        split: Split,
        logger: RunLogger,
    ) -> None:
        """Draw ``batch`` of ``split``."""
        self.task, self.batch, self.world = task, batch, world
        self.precision, self.split, self.logger = precision, split, logger

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Log the picture grid; no metrics."""
        batch = self.batch.to(self.world.device)
        x = self.task.prepare(batch)
        with self.precision.autocast():
            outputs = self.task.predict(x, model)
        inputs = {m.name: [to_picture(image, m) for image in x[m.name]] for m in self.task.inputs}
        grid = self.draw(batch, inputs, {name: y.float() for name, y in outputs.items()})
        self.logger.picture(f"predictions_{self.split}", step, grid)
        return {}

    @abstractmethod
    def draw(
        self, batch: Batch, inputs: Mapping[str, list[Picture]], outputs: Mapping[str, Tensor]
    ) -> Image.Image:
        """Compose the grid from pictures of the inputs and the outputs of every head."""


class Finetuning(Job[TaskT]):
    """Task-specific parts of a fine-tuning run, see :func:`finetune`.

    Attributes:
        scores: Evaluator class.
        pictures: Class that draws samples of a split.
    """

    cfg: FinetuneConfig
    scores: type[SplitEvaluator[TaskT]]
    pictures: type[PredictionPictures[TaskT]]

    def __init__(self, cfg: FinetuneConfig, world: World) -> None:
        """Select the input modalities, with the preprocessing of the weights.

        Raises:
            UserError: Unreadable weights, or options that contradict them.
        """
        self.start = StartWeights(cfg.start) if cfg.start.finetune else None
        self.keeps_encoder = cfg.optim.keeps_encoder
        self.source, self.trained_spec = world.broadcast_from_main(lambda: self._find_spec(cfg))
        self.cfg, self.notes = with_trained_inputs(cfg, self.trained_spec, self.source)
        self.world = world
        self.find_index = index_finder(cfg, world)
        self.mix = cfg.data.mix
        self.inputs = self.modalities = self.with_no_data(
            select(self.cfg.table(), self.cfg.in_names)
        )

    @property
    def roots(self) -> tuple[str | None, ...]:
        """Data roots that the run reads."""
        data = self.cfg.data
        if self.cfg.scores_only:
            return (data.test_data_path if self.cfg.start.test else data.eval_data_path,)
        return (*data.roots, data.eval_data_path, data.test_data_path)

    def with_no_data(self, modalities: Sequence[Modality]) -> list[Modality]:
        """Take ``no_data`` from the tags of TIFF files, on all processes alike."""
        return self.world.broadcast_from_main(lambda: with_no_data_tags(modalities, *self.roots))

    def _find_spec(self, cfg: FinetuneConfig) -> tuple[str, ModelSpec | None]:
        path = checkpoint_to_score(cfg) if cfg.scores_only else newest_checkpoint(cfg.checkpoint)
        return trained_spec(path, self.start)

    def trained_head(self, name: str) -> HeadSpec | None:
        """Head spec of the weights to evaluate; ``None`` if they store none."""
        heads = self.trained_spec.heads if self.trained_spec and self.cfg.scores_only else ()
        return next((head for head in heads if head.name == name), None)

    @abstractmethod
    def eval_set(self, split: Split) -> MultiModalDataset | None:
        """Evaluation set of a split, checked; ``None`` without a path."""

    def describe(self, dataset: MultiModalDataset) -> Iterator[str]:
        """Yield label statistics of the checked samples, and warnings."""
        for table in label_tables(dataset):
            yield from table.lines()
        yield from range_warnings(dataset, self.inputs, self.cfg.data.fields_set())

    def optimizer(self, task: TaskT) -> Optimizer:
        """Optimiser with layer-wise learning rates."""
        return finetune_optimizer(self.cfg, task)

    def average(self, task: TaskT) -> AveragedModel | None:
        """Running average of the weights, with ``--model_ema``."""
        return average(task.model, self.cfg.start) if self.cfg.start.model_ema else None

    def train_evaluators(
        self, task: TaskT, train_set: MultiModalDataset, precision: Precision, logger: RunLogger
    ) -> Sequence[Evaluator]:
        """Metrics and pictures of the evaluation images."""
        evaluators = self.evaluators("eval", task, precision, logger)
        for evaluator in evaluators:
            scored = evaluator.loader.dataset if isinstance(evaluator, SplitEvaluator) else None
            if isinstance(scored, MultiModalDataset):
                for part in train_set.parts:
                    for line in overlap_warnings(part, scored):
                        logger.info(line)
        return evaluators

    def evaluators(
        self, split: Split, task: TaskT, precision: Precision, logger: RunLogger
    ) -> list[Evaluator]:
        """Build the evaluators of a split; empty without a path."""
        dataset = self.eval_set(split)
        if dataset is None:
            return []
        for line in self.describe(dataset):
            logger.info(line)
        pictures: list[Evaluator] = []
        count = self.cfg.log.num_pictures
        if count and self.world.is_main:
            batch = collate([dataset[key] for key in spread_keys(dataset, count)])
            pictures = [self.pictures(task, batch, self.world, precision, split, logger)]
        augmented = self._augmented(task)
        if augmented is not None and augmented.tiles:
            loader = augmented.loader(dataset, self.cfg.data.num_workers, self.world)
        else:
            loader = eval_loader(self.cfg, dataset, self.world)
        scores = self.scores(task, loader, self.world, precision, split, logger)
        scores.augmented = augmented
        return [scores, *pictures]

    def _augmented(self, task: TaskT) -> AugmentedEvaluation | None:
        options = self.cfg.tiles if isinstance(self.cfg, DenseFinetuneConfig) else None
        if options is None or options.is_plain:
            return None
        from utils.tasks.tiled_evaluation import AugmentedEvaluation

        batch_size = self.cfg.data.eval_batch_size or self.cfg.runtime.batch_size
        return AugmentedEvaluation(options, task.model.spec, batch_size)


def finetune(job: Finetuning[Any]) -> dict[str, float]:
    """Train and test, or only evaluate, depending on the configuration.

    Returns:
        Final metrics by name.
    """
    cfg, world = job.cfg, job.world
    output_dir, flat = cfg.checkpoint.output_dir, to_flat_dict(cfg)
    seed_everything(cfg.runtime.seed)
    task = job.build_task()
    if not cfg.scores_only:
        task.freeze(cfg.optim)
    task.to(world.device)
    task.model.set_grad_checkpointing(enable=cfg.runtime.grad_checkpointing)
    precision = choose_precision(cfg.precision, world.device)
    with (
        locked_output_dir(output_dir, world) as paths,
        RunLogger(cfg.log, output_dir, flat, is_main=world.is_main) as logger,
    ):
        logger.info(describe_model(job, task, precision))
        for note in job.notes:
            logger.info(note)
        if cfg.scores_only:
            state = TrainState(task, job.optimizer(task), precision.scaler(), config=flat)
            path = checkpoint_to_score(cfg)
            state.epoch, state.step = load_finetuned(task.model, path)
            logger.info(f"scoring {path}, {state.epoch} epochs trained")
            split: Split = "test" if cfg.start.test else "eval"
            evaluators = job.evaluators(split, task, precision, logger)
            if paths is not None and not paths.config.is_file():
                record_start(paths, cfg, world, logger.info, resumed=True)
            logger.open(state.step)
            return evaluate(state, evaluators, logger, float(state.epoch))
        # Built before training: an unreadable test set must fail early.
        tests = job.evaluators("test", task, precision, logger) if cfg.has_test_set else []
        state = train(job, task, precision, paths, logger)
        if paths is not None and cfg.checkpoint.save_ckpt:
            save_weights(state, paths, world)
        values = {} if state.best is None else {f"best/{job.goal.metric}": state.best}
        if tests:
            saved = paths is not None and cfg.checkpoint.save_ckpt
            best = best_checkpoint(output_dir) if saved else None
            if best is not None:
                epoch, _ = load_finetuned(task.model, best)
                logger.info(f"testing {best}, the best checkpoint, from epoch {epoch}")
                state.ema = None
            values |= evaluate(state, tests, logger, float(state.epoch))
        report_end(logger, job.goal, state.best, pretrained=False)
        return values


def build_model(
    cfg: FinetuneConfig,
    inputs: Sequence[Modality],
    heads: Sequence[HeadSpec],
    *,
    resize_mode: ResizeMode,
    crop_pct: float = 1.0,
    learnable_pos_emb: bool = False,
    **dropout: float,
) -> MultiViT:
    """Build the encoder of the configuration with ``heads``, and set its spec.

    Args:
        cfg: Configuration.
        inputs: Input modalities.
        heads: Specs of the heads.
        resize_mode: Resize mode of evaluation.
        crop_pct: Crop percentage of resize mode ``crop``.
        learnable_pos_emb: Train the position tables.
        **dropout: Dropout rates of :class:`multimae.MultiViT`.

    Raises:
        UserError: Invalid combination of options.
    """
    model = cfg.model
    spec = ModelSpec(
        name=model.model,
        inputs=tuple(inputs),
        patch_size=model.patch_size,
        image_size=model.input_size,
        num_global_tokens=model.num_global_tokens,
        heads=tuple(heads),
        learnable_pos_emb=learnable_pos_emb,
        padding_class=resize_mode == "pad",
        resize_mode=resize_mode,
        crop_pct=crop_pct,
    )
    try:
        if spec.kind != MULTIVIT:
            raise ValueError(f"model {spec.name} is for pre-training; fine-tuning needs multivit_*")
        return MultiViT.from_spec(spec, drop_path_rate=model.encoder_drop_path, **dropout)
    except ValueError as err:
        raise UserError(str(err)) from err


def finetune_optimizer(cfg: FinetuneConfig, task: FinetuneTask) -> Optimizer:
    """Build the optimizer, with layer-wise lr decay (SPEC section 6) and frozen parameters."""
    optim = cfg.optim
    depth, _ = encoder_shape(cfg.model.model)
    exempt = split_names(optim.no_lr_scale_list)

    def scale(name: str) -> float:
        name = name.removeprefix("model.")
        if any(part in name for part in exempt):
            return 1.0
        if name.startswith("input_adapters.") and not optim.scale_input_lr:
            return 1.0
        return layer_lr_scale(name, depth, optim.layer_decay)

    groups = param_groups(
        task.named_parameters(),
        optim.weight_decay,
        lr_scale=scale,
        no_decay=finetune_no_decay,
        decoder_decay=optim.decoder_decay,
    )
    return build_optimizer(
        groups, optim.opt, optim.lr or 1.0, betas=optim.opt_betas, eps=optim.opt_eps,
        momentum=optim.momentum,
    )  # fmt: skip
