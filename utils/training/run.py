"""From the options to a :class:`utils.training.loop.Run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch.utils.data import DataLoader

from utils.checkpoint.saving import Saver
from utils.config.options import CheckpointOptions, DataOptions, LogOptions, RuntimeOptions
from utils.data.batches import BadSamples, BatchStream
from utils.data.dataset import MultiModalDataset
from utils.data.samplers import GlobalBatchSampler
from utils.distributed.control import ControlGroup
from utils.logs.logger import RunLogger
from utils.tasks.base import Evaluator
from utils.training.loop import Run
from utils.training.nonfinite import NonFinite
from utils.training.plan import RunPlan
from utils.training.state import Goal, TrainState
from utils.training.stepper import Stepper


class TrainConfig(Protocol):
    """The sections of a configuration that a run needs."""

    @property
    def data(self) -> DataOptions:
        """Data."""
        ...

    @property
    def runtime(self) -> RuntimeOptions:
        """Run."""
        ...

    @property
    def checkpoint(self) -> CheckpointOptions:
        """Checkpoints."""
        ...


def make_run(
    cfg: TrainConfig,
    state: TrainState,
    loader: DataLoader[Any],
    sampler: GlobalBatchSampler,
    plan: RunPlan,
    stepper: Stepper,
    logger: RunLogger,
    evaluators: Sequence[Evaluator],
    log: LogOptions,
    goal: Goal | None = None,
) -> Run:
    """What :func:`utils.training.loop.fit` works with; all processes call it at the same time."""
    world = stepper.world
    control = ControlGroup(world)
    bad_samples = BadSamples(cfg.data.max_bad_samples, logger.say, state.left_out)
    if isinstance(loader.dataset, MultiModalDataset):
        bad_samples.add(loader.dataset.known_bad)
        bad_samples.check()
    return Run(
        state,
        BatchStream(
            loader,
            sampler,
            plan.steps_per_epoch * plan.accum_steps,
            plan.total_steps * plan.accum_steps,
        ),
        plan,
        stepper,
        logger,
        evaluators,
        log,
        saver=Saver(cfg.checkpoint, world),
        control=control,
        nonfinite=NonFinite(cfg.checkpoint.output_dir, control),
        bad_samples=bad_samples,
        rolls_back=cfg.runtime.on_nonfinite == "rollback",
        goal=goal,
    )
