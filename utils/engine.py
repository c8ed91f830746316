"""The training loop: the only one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from utils.checkpoint import save_best, save_checkpoint
from utils.data.loaders import Batch
from utils.data.samplers import GlobalBatchSampler
from utils.dist import World
from utils.errors import RunError
from utils.logging import RunLogger
from utils.optim import clip_or_skip
from utils.options import CheckpointOptions, LogOptions, OptimOptions, RuntimeOptions
from utils.plan import RunPlan
from utils.precision import Precision
from utils.profiling import StepClock
from utils.seeding import seed_everything
from utils.state import Goal, TrainState
from utils.tasks.base import Evaluator, Pictures, StepPosition


def fit(
    state: TrainState,
    loader: DataLoader[Any],
    sampler: GlobalBatchSampler,
    plan: RunPlan,
    stepper: Stepper,
    logger: RunLogger,
    evaluators: Sequence[Evaluator],
    log: LogOptions,
    checkpoint: CheckpointOptions,
    goal: Goal | None = None,
) -> None:
    """Train from ``state`` to the end of ``plan``; keep the checkpoint that is best at ``goal``.

    Raises:
        RunError: The loss is not finite; all processes raise it.
    """
    saving = bool(checkpoint.output_dir) and checkpoint.save_ckpt
    window = LogWindow(stepper.world)
    clock = StepClock()
    logger.start_progress(plan.total_steps, state.step)
    while state.step < plan.total_steps:
        done = state.step - state.epoch * plan.steps_per_epoch
        sampler.set_epoch(state.epoch)
        sampler.set_start(done * plan.accum_steps)
        batches = clock.watch(loader)
        for _ in range(done, plan.steps_per_epoch):
            lr = plan.schedule.apply(state.optimizer, state.step)
            window.add(state.step, stepper.step(state, batches))
            state.step += 1
            clock.count(plan.global_batch)
            logger.advance()
            due = state.step % log.log_every == 0 or state.step == plan.total_steps
            if due or stepper.world.device.type == "cpu":
                window.check_finite()
            if due:
                values = {**window.read(), "lr": lr, **clock.read()}
                logger.train(state.step, state.step / plan.steps_per_epoch, values)
                clock.reset()
            if state.step == plan.total_steps:
                break
        window.check_finite()
        state.epoch = state.step // plan.steps_per_epoch
        finished = state.step == plan.total_steps
        if evaluators and (finished or state.epoch % log.eval_freq == 0):
            chosen = due_evaluators(evaluators, log, state.epoch, finished)
            values = evaluate(state, chosen, logger, state.step / plan.steps_per_epoch)
            improved = goal is not None and state.improve(goal, values)
            if improved and saving and stepper.world.is_main:
                save_best(state, checkpoint.output_dir)
        if saving and (finished or state.epoch % checkpoint.save_ckpt_freq == 0):
            if stepper.world.is_main:
                save_checkpoint(state, checkpoint.output_dir)
            stepper.world.barrier()
        clock.reset()


def due_evaluators(
    evaluators: Sequence[Evaluator], log: LogOptions, epoch: int, finished: bool
) -> Sequence[Evaluator]:
    """All of them; without pictures where ``picture_freq`` epochs have not passed."""
    every = log.picture_freq
    if finished or epoch // every > (epoch - log.eval_freq) // every:
        return evaluators
    return [e for e in evaluators if not isinstance(e, Pictures)]


def evaluate(
    state: TrainState, evaluators: Sequence[Evaluator], logger: RunLogger, epoch: float
) -> dict[str, float]:
    """Run every evaluator on the model in evaluation mode and log one row."""
    model = on_device_of(state.model, state.scored_model)
    state.task.eval()
    model.eval()
    values: dict[str, float] = {}
    for evaluator in evaluators:
        values.update(evaluator.run(model, state.step))
    state.task.train()
    logger.eval(state.step, epoch, values)
    return values


def on_device_of(reference: nn.Module, model: nn.Module) -> nn.Module:
    """``model``; a copy where ``reference`` is, if it is elsewhere (an average on the CPU)."""
    here, there = (next(m.parameters()).device for m in (reference, model))
    return model if here == there else copy.deepcopy(model).to(here)


class Stepper:
    """One update: forward and backward over the accumulated batches, clip, optimiser step."""

    def __init__(
        self,
        state: TrainState,
        world: World,
        plan: RunPlan,
        precision: Precision,
        optim: OptimOptions,
        runtime: RuntimeOptions,
        skip_grad: float | None = None,
    ) -> None:
        """Wrap the task for distribution."""
        self.world, self.plan, self.precision = world, plan, precision
        self.clip_grad, self.skip_grad, self.seed = optim.clip_grad, skip_grad, runtime.seed
        self.parameters = [p for p in state.task.parameters() if p.requires_grad]
        self.task: nn.Module = state.task
        if world.size > 1:
            self.task = DistributedDataParallel(
                state.task,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                find_unused_parameters=runtime.find_unused_params,
            )

    def step(self, state: TrainState, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Consume ``accum_steps`` batches and update the weights.

        Returns:
            Scalars on the device: ``loss``, what the task logs (means over the batches),
            ``grad_norm``.
        """
        accum, world = self.plan.accum_steps, self.world
        seed_everything(self.seed, state.step, world.rank)
        logs: dict[str, Tensor] = {}
        for micro in range(accum):
            batch = next(batches).to(world.device)
            first = (micro * world.size + world.rank) * self.plan.batch_size
            position = StepPosition(state.step, first, self.plan.global_batch)
            last = micro == accum - 1
            with nullcontext() if last or world.size == 1 else self.task.no_sync():  # type: ignore[operator]
                with self.precision.autocast():
                    out = self.task(batch, position)
                state.scaler.scale(out.loss / accum).backward()
            for name, value in {"loss": out.loss.detach(), **out.logs}.items():
                logs[name] = logs[name] + value / accum if name in logs else value / accum
        state.scaler.unscale_(state.optimizer)
        norm, skip = clip_or_skip(self.parameters, self.clip_grad, self.skip_grad)
        if self.skip_grad is None or not skip.item():
            state.scaler.step(state.optimizer)
            if state.ema is not None:
                state.ema.update_parameters(state.model)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        return {**logs, "grad_norm": norm}


class LogWindow:
    """Means of logged values since the last log line, kept on the device.

    Losses that are not finite are remembered with their step, so that nothing waits for the device
    between log lines and yet the first bad step is named.
    """

    def __init__(self, world: World) -> None:
        """Empty window."""
        self.world = world
        self.names: tuple[str, ...] = ()
        self.sums = self.first_bad = torch.zeros(0)
        self.count = 0

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Add the scalars of one step (the same names every time)."""
        row = torch.stack([v.float() for v in values.values()])
        if not self.names:
            self.names = tuple(values)
            self.first_bad = torch.full_like(row, -1.0)
        self.sums = row if self.count == 0 else self.sums + row
        new = ~row.isfinite() & (self.first_bad < 0)
        self.first_bad = torch.where(new, float(step + 1), self.first_bad)
        self.count += 1

    def check_finite(self) -> None:
        """Stop every process if a loss of any was not finite.

        A gradient norm alone may overflow: the fp16 loss scaler handles that.

        Raises:
            RunError: Names the losses and the step (counted from 1).
        """
        bad = self.world.max(self.first_bad).tolist()
        losses = {n: int(s) for n, s in zip(self.names, bad, strict=True) if n != "grad_norm"}
        steps = [s for s in losses.values() if s >= 0]
        if steps:
            first = min(steps)
            names = ", ".join(n for n, s in losses.items() if s == first)
            raise RunError(
                f"the loss is not finite at step {first}: {names}. Lower --blr, clip with "
                "--clip_grad 1.0, or train in bf16 or fp32 instead of fp16; check the data for "
                "NaN or constant images. No checkpoint was written after the last good epoch."
            )

    def read(self) -> dict[str, float]:
        """Means over the window and all processes; begins a new window."""
        mean = self.world.sum(self.sums / self.count) / self.world.size
        self.count = 0
        return dict(zip(self.names, mean.tolist(), strict=True))
