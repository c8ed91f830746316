"""A training run, from the configuration to the final weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from multimae.specs.modalities import Modality
from multimae.weights.pretrained import Pretrained, save_model
from utils.checkpoint.resume_point import find_checkpoint
from utils.checkpoint.saving import Saver
from utils.config.options import RunConfig
from utils.config.parse import to_flat_dict
from utils.data.batches import BadSamples, BatchStream
from utils.data.dataset import MultiModalDataset
from utils.distributed.world import ControlGroup, World
from utils.logs.logger import RunLogger
from utils.logs.paths import Info, RunPaths, record_start
from utils.tasks.base import Evaluator, Task
from utils.tasks.loaders import train_loader
from utils.training.loop import TrainingRun, fit
from utils.training.nonfinite import NonFinite
from utils.training.schedule import RunPlan, make_run_plan
from utils.training.state import Goal, TrainState
from utils.training.stepper import Precision, Stepper

if TYPE_CHECKING:
    from utils.checkpoint.start_weights import StartWeights
    from utils.logs.monitor import RunMonitor

TaskT = TypeVar("TaskT", bound=Task)


class Job(ABC, Generic[TaskT]):
    """Task-specific parts of a training run, see :func:`train`.

    Attributes:
        cfg: The configuration.
        world: Processes.
        goal: Selects the best checkpoint.
        start: Weights to start from; ``None`` for initial ones.
        starts_with_heads: Also load their decoders and heads.
        keeps_encoder: Weights of the encoder and its input adapters are frozen.
        modalities: Modalities in order; must not change on resume.
        mix: Training folders and their shares, of a mix; must not change on resume.
        skip_grad: Gradient norm above which steps are skipped.
    """

    cfg: RunConfig
    world: World
    goal: Goal
    start: StartWeights | None = None
    starts_with_heads = False
    keeps_encoder = False
    modalities: Sequence[Modality]
    mix: Sequence[tuple[str, float]] = ()
    skip_grad: float | None = None

    @abstractmethod
    def build_task(self) -> TaskT:
        """Build the model and the losses."""

    @abstractmethod
    def train_set(self) -> MultiModalDataset:
        """Training set with augmentation, checked."""

    @abstractmethod
    def describe(self, dataset: MultiModalDataset) -> Iterable[str]:
        """Yield label statistics of the checked samples, and warnings."""

    @abstractmethod
    def optimizer(self, task: TaskT) -> Optimizer:
        """Optimiser over the parameters to train."""

    def average(self, task: TaskT) -> AveragedModel | None:
        """Running average (EMA) of the weights; ``None`` without."""
        return None

    @abstractmethod
    def train_evaluators(
        self, task: TaskT, train_set: MultiModalDataset, precision: Precision, logger: RunLogger
    ) -> Sequence[Evaluator]:
        """Evaluators that run during training."""


def describe_model(job: Job[TaskT], task: TaskT, precision: Precision) -> str:
    """Name and size of the model, and what it runs on."""
    millions = sum(p.numel() for p in task.model.parameters()) / 1e6
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    part = f", {trained:,} trained" if job.keeps_encoder and not job.cfg.scores_only else ""
    return f"{job.cfg.model.model}: {millions:.1f} M parameters{part}, {precision} on {job.world}"


def train(
    job: Job[TaskT],
    task: TaskT,
    precision: Precision,
    paths: RunPaths | None,
    logger: RunLogger,
) -> TrainState:
    """Train, from a checkpoint, from weights or from scratch (collective).

    Args:
        job: What to train on and how.
        task: Model and losses, on the device; sharded with ``--parallel fsdp``.
        precision: Autocast type.
        paths: The output folder; ``None`` for none.
        logger: Log of the run.

    Returns:
        The final state.
    """
    cfg, world, info = job.cfg, job.world, logger.info
    train_set = job.train_set()
    loader, sampler = train_loader(cfg, train_set, world)
    plan = make_run_plan(len(sampler), world.size, cfg.optim, cfg.runtime, **cfg.optim.rates)
    steps, accum_steps = plan.steps_per_epoch, plan.accum_steps
    checkpoint = find_checkpoint(cfg.checkpoint, world, info)
    report = _load_start(job, task, train_set, info) if checkpoint is None else ""
    monitor = _monitor(job, task, precision, paths, info)
    state = _initial_state(job, task, precision, train_set, plan)
    for line in _describe_run(job, plan, train_set):
        info(line)
    if checkpoint is not None:
        from utils.checkpoint.resume import resume

        resume(state, checkpoint, cfg, world, info)
    control = ControlGroup(world)
    bad_samples = BadSamples(cfg.data.max_bad_samples, info, state.bad_sample_names)
    bad_samples.add(train_set.known_bad)
    bad_samples.check()
    evaluators = job.train_evaluators(task, train_set, precision, logger)
    _compare_eval_set(state, evaluators, info)
    run = TrainingRun(
        state,
        BatchStream(loader, sampler, steps * accum_steps, plan.total_steps * accum_steps),
        plan,
        Stepper(state, world, plan, precision, cfg.optim, cfg.runtime, job.skip_grad),
        logger,
        [*evaluators, *_source_counts(cfg, train_set, plan)],
        log=replace(cfg.log, eval_freq=cfg.eval_freq),
        saver=Saver(cfg.checkpoint, world),
        control=control,
        nonfinite=NonFinite(cfg.checkpoint.output_dir, control),
        bad_samples=bad_samples,
        rolls_back=cfg.runtime.on_nonfinite == "rollback",
        goal=job.goal,
        monitor=monitor,
    )
    resumed = paths is not None and paths.has_checkpoint(checkpoint)
    record_start(paths, cfg, world, info, resumed=resumed, report=report)
    fit(run)
    return state


def _monitor(
    job: Job[TaskT], task: TaskT, precision: Precision, paths: RunPaths | None, info: Info
) -> RunMonitor | None:
    log = job.cfg.log
    if job.world.device.type != "cuda" and log.peak_tflops is None and not log.profile:
        return None
    from utils.logs.monitor import RunMonitor

    return RunMonitor(job.cfg, task, job.world, precision.dtype, paths, info)


def _describe_run(job: Job[TaskT], plan: RunPlan, train_set: MultiModalDataset) -> Iterator[str]:
    yield f"{len(train_set)} images, {plan.describe()}"
    for problem in plan.warnings(job.cfg.optim, job.cfg.optim.rates["blr"]):
        yield f"warning: {problem}"
    for part in train_set.parts:
        yield from job.describe(part)


def _source_counts(
    cfg: RunConfig, train_set: MultiModalDataset, plan: RunPlan
) -> Iterator[Evaluator]:
    if cfg.data.sources:
        from utils.data.mixing import SourceCounts

        yield SourceCounts(train_set, plan.global_batch)


def _compare_eval_set(state: TrainState, evaluators: Sequence[Evaluator], info: Info) -> None:
    """Compare the evaluation set with the checkpoint's; report a change."""
    for evaluator in evaluators:
        dataset = getattr(getattr(evaluator, "loader", None), "dataset", None)
        change = isinstance(dataset, MultiModalDataset) and state.evaluate_on(dataset.fingerprint())
        if change:
            info(f"changed on resume: {change}; the best value starts anew")


def _initial_state(
    job: Job[TaskT],
    task: TaskT,
    precision: Precision,
    train_set: MultiModalDataset,
    plan: RunPlan,
) -> TrainState:
    """State before the first step; shards the model with ``--parallel fsdp``."""
    ema, full_model_builder, compiled = job.average(task), None, {}
    runtime, sharded = job.cfg.runtime, job.cfg.runtime.parallel == "fsdp" and job.world.size > 1
    if runtime.compile:
        from utils.training.compilation import compile_options

        compiled = compile_options(runtime)
        task.compile_step(sharded=sharded, **compiled)
    if sharded:
        from utils.distributed.sharding import shard

        averages = [ema.module] if ema else []
        full_model_builder = shard(task, averages, job.world, precision.dtype, compiled)
    state = TrainState(
        task,
        job.optimizer(task),
        precision.scaler(),
        ema=ema,
        global_batch=plan.global_batch,
        config=to_flat_dict(job.cfg),
        identity={
            "samples": train_set.fingerprint(),
            "modalities": [m.name for m in job.modalities],
            "mix": list(job.mix),
        },
        full_model_builder=full_model_builder,
    )
    state.start_at(job.cfg.runtime.start_epoch, plan.steps_per_epoch)
    return state


def save_weights(state: TrainState, paths: RunPaths, world: World) -> None:
    """Write the final weights with their spec (collective)."""
    weights = state.scored_weights(world)
    if world.is_main:
        save_model(weights, cast(Pretrained, state.model).spec, paths.model)


def report_end(logger: RunLogger, goal: Goal, best: float | None, *, pretrained: bool) -> None:
    """Log the best score, where weights and pictures are, and the next command."""
    if logger.is_main and logger.paths is not None:
        from utils.logs.summary import summary_lines

        for line in summary_lines(logger.paths, goal, best, pretrained=pretrained):
            logger.info(line)


def _load_start(job: Job[TaskT], task: TaskT, train_set: MultiModalDataset, info: Info) -> str:
    """Load the weights to start from, if there are any; see :meth:`StartWeights.load_for`."""
    if job.start is None:
        return ""
    heads, needs_encoder = job.starts_with_heads, job.keeps_encoder
    return job.start.load_for(train_set, task.model, info, heads=heads, needs_encoder=needs_encoder)
