"""Numbers derived from the configuration and the size of the data: the run plan."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config.options import OptimOptions, RuntimeOptions
from utils.logs.errors import UserError
from utils.training.schedule import Schedule


@dataclass(frozen=True)
class RunPlan:
    """How long the run is and how it is cut up. A step is one update of the weights.

    Attributes:
        epochs: Passes over the training set.
        steps_per_epoch: Updates per epoch.
        accum_steps: Batches accumulated per update.
        batch_size: Samples per process and batch.
        world_size: Processes.
        lr: Absolute peak learning rate.
        schedule: Values per step.
        max_steps: Stop after this many updates.
    """

    epochs: int
    steps_per_epoch: int
    accum_steps: int
    batch_size: int
    world_size: int
    lr: float
    schedule: Schedule
    max_steps: int | None = None

    @property
    def global_batch(self) -> int:
        """Samples per update."""
        return self.batch_size * self.accum_steps * self.world_size

    @property
    def total_steps(self) -> int:
        """Updates this run will make."""
        total = self.epochs * self.steps_per_epoch
        return min(total, self.max_steps) if self.max_steps else total

    def describe(self) -> str:
        """The plan in one line."""
        return (
            f"{self.epochs} epochs x {self.steps_per_epoch} steps, global batch "
            f"{self.global_batch} = {self.batch_size} x {self.accum_steps} accumulated x "
            f"{self.world_size} processes, peak lr {self.lr:.3g}"
        )


def make_plan(
    batches_per_epoch: int,
    world_size: int,
    optim: OptimOptions,
    runtime: RuntimeOptions,
    blr: float | None,
    lr: float | None = None,
) -> RunPlan:
    """Absolute learning rate, step counts and schedule.

    Args:
        batches_per_epoch: Loader batches of one process.
        world_size: Processes.
        optim: Optimiser section.
        runtime: Run section.
        blr: Learning rate per 256 samples of global batch.
        lr: Absolute learning rate instead.

    Raises:
        UserError: Accumulation leaves no step, or warm-up no cosine.
    """
    steps = batches_per_epoch // optim.update_freq
    if steps == 0:
        raise UserError(
            f"--update_freq {optim.update_freq}: an epoch has only {batches_per_epoch} batches; "
            "lower --update_freq or --batch_size."
        )
    global_batch = runtime.batch_size * optim.update_freq * world_size
    if lr is None:
        lr = (blr or 0.0) * global_batch / 256
    total = runtime.epochs * steps
    if runtime.schedule_to_max_steps and runtime.max_steps:
        total = min(total, runtime.max_steps)
    warmup = optim.warmup_steps if optim.warmup_steps > 0 else optim.warmup_epochs * steps
    try:
        schedule = Schedule.cosine(
            lr=lr,
            min_lr=optim.min_lr,
            total_steps=total,
            warmup_steps=warmup,
            warmup_lr=optim.warmup_lr,
            weight_decay=optim.weight_decay,
            weight_decay_end=optim.weight_decay_end,
        )
    except ValueError as err:
        raise UserError(str(err)) from err
    return RunPlan(
        epochs=runtime.epochs,
        steps_per_epoch=steps,
        accum_steps=optim.update_freq,
        batch_size=runtime.batch_size,
        world_size=world_size,
        lr=lr,
        schedule=schedule,
        max_steps=runtime.max_steps,
    )
