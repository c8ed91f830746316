"""Fine-tuning: the run that all four scripts share, and what each of them adds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from multimae.images.preprocess import prepare
from multimae.multimae import MultiViT
from multimae.specs.heads import HeadSpec, reads_all_layers
from multimae.specs.modalities import Modality
from multimae.specs.sizes import MULTIVIT, encoder_shape
from multimae.specs.spec import ModelSpec, ResizeMode
from multimae.weights.pretrained import save_model
from utils.checkpoint.files import best_checkpoint, resume
from utils.checkpoint.start_weights import REPORT, load_pretrained
from utils.config.finetune_options import FinetuneConfig, Split
from utils.config.options import split_names
from utils.config.parse import to_flat_dict
from utils.data.batches import Batch
from utils.data.dataset import MultiModalDataset, build_eval_loader, build_train_loader
from utils.data.samplers import EvalBatchSampler, GlobalBatchSampler
from utils.data.statistics import statistics_warnings
from utils.distributed.sharding import shard
from utils.distributed.world import World
from utils.logs.errors import UserError
from utils.logs.logger import RunLogger
from utils.logs.paths import prepare_output_dir
from utils.tasks.base import Evaluator, Task
from utils.tasks.scored_weights import checkpoint_to_score, load_scored
from utils.training.ema import average
from utils.training.loop import evaluate, fit
from utils.training.optim import build_optimizer, finetune_no_decay, layer_lr_scale, param_groups
from utils.training.plan import make_plan
from utils.training.precision import Precision, choose_precision
from utils.training.run import make_run
from utils.training.seeding import seed_everything
from utils.training.state import Goal, TrainState
from utils.training.stepper import Stepper

# Samples read before training, so that bad files end a run at once and not in its first epoch.
CHECKED_SAMPLES = 256

_INPUTS = "input_adapters."
_ENCODER = "encoder."


class FinetuneTask(Task):
    """Base of the fine-tuning tasks: a MultiViT with heads, and the rows it reads."""

    model: MultiViT

    def __init__(self, model: MultiViT, inputs: Sequence[Modality]) -> None:
        """Own ``model``; ``inputs`` are the rows of its inputs, in order."""
        super().__init__()
        self.model = model
        self.inputs = tuple(inputs)
        self._all_layers = reads_all_layers(model)

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Model inputs."""
        return prepare(batch.images, self.inputs)

    def predict(self, x: Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
        """Outputs of every head for prepared inputs.

        Args:
            x: Model inputs by modality; others are ignored.
            model: Another model of the same shape, such as the weights' average.
        """
        own = self.model if model is None else model
        outputs: dict[str, Tensor] = own(x, return_all_layers=self._all_layers)
        return outputs


class Finetuning(ABC):
    """What one fine-tuning script adds to :func:`finetune`.

    Attributes:
        goal: Says which checkpoint is best; its metric is named ``eval/...``.
    """

    goal: Goal

    @abstractmethod
    def train_set(self) -> MultiModalDataset:
        """Checked, augmented training samples."""

    @abstractmethod
    def build_task(self) -> FinetuneTask:
        """Model with heads (see :func:`build_model`), and losses."""

    @abstractmethod
    def evaluators(
        self, split: Split, task: FinetuneTask, precision: Precision, logger: RunLogger
    ) -> list[Evaluator]:
        """Metrics ``{split}/...`` and pictures of a split; none if it has no images."""


def finetune(cfg: FinetuneConfig, world: World, job: Finetuning) -> dict[str, float]:
    """Train, or only score, as the configuration says.

    Returns:
        The last metrics, by name.
    """
    output_dir = cfg.checkpoint.output_dir
    prepare_output_dir(output_dir, cfg, world, keep_config=cfg.scores_only)
    seed_everything(cfg.runtime.seed)
    task = job.build_task().to(world.device)
    task.model.checkpoint_gradients(on=cfg.runtime.grad_checkpointing)
    precision = choose_precision(cfg.precision, world.device)
    flat = to_flat_dict(cfg)
    with RunLogger(cfg.log, output_dir, flat, is_main=world.is_main) as logger:
        millions = sum(p.numel() for p in task.model.parameters()) / 1e6
        logger.say(f"{cfg.model.model}: {millions:.1f} M parameters, {precision} on {world}")
        if cfg.scores_only:
            state = TrainState(task, optimizer_for(cfg, task), precision.scaler(), config=flat)
            path = checkpoint_to_score(cfg)
            state.epoch, state.step = load_scored(task.model, path)
            logger.say(f"scoring {path}, {state.epoch} epochs trained")
            split: Split = "test" if cfg.start.test else "eval"
            evaluators = job.evaluators(split, task, precision, logger)
            return evaluate(state, evaluators, logger, float(state.epoch))
        # Built now, so that a test set that cannot be read is known before the training.
        tests = job.evaluators("test", task, precision, logger) if cfg.has_test_set else []
        state = _train(cfg, world, job, task, precision, logger)
        values = {} if state.best is None else {f"best/{job.goal.metric}": state.best}
        if tests:
            saved = bool(output_dir) and cfg.checkpoint.save_ckpt
            best = best_checkpoint(output_dir) if saved else None
            if best is not None:
                epoch, _ = load_scored(task.model, best)
                logger.say(f"testing {best}, the best, of epoch {epoch}")
                state.ema = None
            values |= evaluate(state, tests, logger, float(state.epoch))
        return values


def _train(
    cfg: FinetuneConfig,
    world: World,
    job: Finetuning,
    task: FinetuneTask,
    precision: Precision,
    logger: RunLogger,
) -> TrainState:
    """Weights, data, loop; returns what the run is at its end."""
    runtime, output_dir = cfg.runtime, cfg.checkpoint.output_dir
    train_set = job.train_set()
    sampler = GlobalBatchSampler(
        len(train_set),
        runtime.batch_size,
        rank=world.rank,
        world_size=world.size,
        seed=runtime.seed,
    )
    loader = build_train_loader(
        train_set,
        sampler,
        num_workers=cfg.data.num_workers,
        pin_memory=cfg.data.pin_mem,
        held=cfg.optim.update_freq,
    )
    plan = make_plan(len(sampler), world.size, cfg.optim, runtime, **cfg.optim.rates)
    if cfg.start.finetune:
        report = load_pretrained(task.model, cfg.start)
        logger.say(report.summary())
        if output_dir and world.is_main:
            (Path(output_dir) / REPORT).write_text(report.details() + "\n", encoding="utf-8")
        for warning in statistics_warnings(cfg.start.finetune, train_set):
            logger.say(warning)
    ema = average(task.model, cfg.start) if cfg.start.model_ema else None
    blueprint = shard(task, [ema.module] if ema else [], world, runtime, precision)
    state = TrainState(
        task,
        optimizer_for(cfg, task),
        precision.scaler(),
        ema=ema,
        global_batch=plan.global_batch,
        config=to_flat_dict(cfg),
        blueprint=blueprint,
    )
    taken = resume(state, cfg.checkpoint, world, logger.say)
    if taken is None:
        state.start_at(runtime.start_epoch, plan.steps_per_epoch)
    logger.say(f"{len(train_set)} images, {plan.describe()}")
    if taken is not None:
        logger.say(f"resumed from {taken} after epoch {state.epoch}, step {state.step}")
    stepper = Stepper(state, world, plan, precision, cfg.optim, runtime)
    evaluators = job.evaluators("eval", task, precision, logger)
    log = replace(cfg.log, eval_freq=cfg.eval_freq)
    fit(make_run(cfg, state, loader, sampler, plan, stepper, logger, evaluators, log, job.goal))
    if output_dir and cfg.checkpoint.save_ckpt:
        weights = state.scored_weights(world)
        if world.is_main:
            save_model(weights, task.model.spec, Path(output_dir) / "model.safetensors")
    return state


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
    """The encoder of the configuration with ``heads``, knowing what it is.

    Args:
        cfg: The configuration.
        inputs: Rows of the inputs.
        heads: What is predicted.
        resize_mode: How evaluation brings images to the model's size.
        crop_pct: Of ``crop``.
        learnable_pos_emb: Train the position tables.
        **dropout: Rates, as for :class:`multimae.MultiViT`.

    Raises:
        UserError: Options that no model can be built from.
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
            raise ValueError(f"model {spec.name} masks its inputs; fine-tuning needs a multivit_*")
        return MultiViT.from_spec(spec, drop_path_rate=model.encoder_drop_path, **dropout)
    except ValueError as err:
        raise UserError(str(err)) from err


def optimizer_for(cfg: FinetuneConfig, task: FinetuneTask) -> Optimizer:
    """Optimiser with layer-wise rates (SPEC section 6); frozen blocks are left out."""
    optim = cfg.optim
    depth, _ = encoder_shape(cfg.model.model)
    exempt = split_names(optim.no_lr_scale_list)

    def scale(name: str) -> float:
        name = name.removeprefix("model.")
        if any(part in name for part in exempt):
            return 1.0
        if name.startswith(_INPUTS) and not optim.scale_input_lr:
            return 1.0
        return layer_lr_scale(name, depth, optim.layer_decay)

    if optim.freeze_transformer:
        for name, parameter in task.model.named_parameters():
            if name.startswith(_ENCODER):
                parameter.requires_grad_(False)
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


def eval_loader(dataset: MultiModalDataset, cfg: FinetuneConfig, world: World) -> DataLoader[Any]:
    """This process's share of a set, every sample once over all."""
    batch_size = cfg.data.eval_batch_size or cfg.runtime.batch_size
    sampler = EvalBatchSampler(len(dataset), batch_size, rank=world.rank, world_size=world.size)
    return build_eval_loader(
        dataset, sampler, num_workers=cfg.data.num_workers, pin_memory=cfg.data.pin_mem
    )
