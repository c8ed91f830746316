"""The training loop of all scripts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from torch import nn

from multimae.specs.errors import RunError
from utils.checkpoint.checkpoint_files import newest_step
from utils.checkpoint.saving import Saver
from utils.config.options import LogOptions
from utils.data.batches import BadSamples, Batch, BatchStream
from utils.distributed.script import Stopped, StopRequest, acknowledge
from utils.distributed.world import Control, ControlGroup
from utils.logs.logger import RunLogger
from utils.logs.window import StepClock
from utils.tasks.base import Evaluator, PeriodicEvaluator, PictureEvaluator
from utils.training.nonfinite import GRAD_NORM, MIN_LOSS_SCALE, NonFinite
from utils.training.schedule import RunPlan
from utils.training.state import Goal, TrainState
from utils.training.stepper import Stepper

if TYPE_CHECKING:  # off by default
    from utils.logs.monitor import RunMonitor


@dataclass
class TrainingRun:
    """What :func:`fit` works with; made by :func:`utils.tasks.job.train`."""

    state: TrainState
    stream: BatchStream
    plan: RunPlan
    stepper: Stepper
    logger: RunLogger
    evaluators: Sequence[Evaluator]
    log: LogOptions
    saver: Saver
    control: ControlGroup
    nonfinite: NonFinite
    bad_samples: BadSamples
    rolls_back: bool = False
    goal: Goal | None = None
    monitor: RunMonitor | None = None
    clock: StepClock = field(default_factory=StepClock)
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def is_scored(self) -> bool:
        """Whether the evaluation at the current step is done."""
        if self.state.scored >= 0:
            return self.state.scored == self.state.step
        # Checkpoints of older versions do not say.
        return self.state.step == self.state.epoch * self.plan.steps_per_epoch


def fit(run: TrainingRun) -> None:
    """Train to the end of the plan; keep the checkpoint that is best at the goal.

    Raises:
        RunError: The loss is not finite, files cannot be read or written, a loader process died.
        Stopped: A signal asked for an end; the run is saved where it is.
    """
    state, plan, saver, clock = run.state, run.plan, run.saver, run.clock
    monitor = closing(run.monitor) if run.monitor else nullcontext()
    with run.stop.listening(), _named_causes(), monitor:
        _begin(run)
        while state.step < plan.total_steps and not _stops_early(run):
            end = min((state.epoch + 1) * plan.steps_per_epoch, plan.total_steps)
            clock.reset()
            batches = clock.watch(run.stream.seek(state.step * plan.accum_steps))
            while state.step < end:
                lr = plan.schedule.apply(state.optimizer, state.step)
                micro = list(islice(batches, plan.accum_steps))
                if _sync_control(run, micro) and state.step not in state.skipped:
                    _update(run, micro)
                state.step += 1
                clock.count(plan.global_batch)
                run.logger.advance()
                due = state.step % run.log.log_every == 0 or state.step == plan.total_steps
                checked = due or state.step == end or saver.due_at(state.step)
                if (checked or run.stepper.world.device.type == "cpu") and _rolled_back(run):
                    break
                if due:
                    _log(run, lr)
                if saver.due_at(state.step) and state.step < end:
                    saver.save(state, at_epoch_end=False)
            else:
                _finish_epoch(run)
        saver.finish()
        run.nonfinite.check_end(state.step, state.skipped)
        if saver.active:
            run.logger.info(saver.cost())
        run.stepper.world.barrier()


def _stops_early(run: TrainingRun) -> bool:
    """Whether ``--early_stop_patience`` evaluations in a row were no better; logs it."""
    patience, state = run.log.early_stop_patience, run.state
    if patience is None or state.stale < patience or run.goal is None:
        return False
    best = "any number" if state.best is None else f"{state.best:.6g}"
    run.logger.info(
        f"early stop after epoch {state.epoch}: {run.goal.metric} was no better than {best} in "
        f"{state.stale} evaluations"
    )
    return True


def _begin(run: TrainingRun) -> None:
    state, world, folder = run.state, run.stepper.world, run.saver.folder
    run.logger.start_progress(run.plan.total_steps, state.step)
    run.logger.rewind(state.step, scored=run.is_scored)
    if run.rolls_back and not world.broadcast_from_main(lambda: newest_step(folder) == state.step):
        run.saver.save(state, at_epoch_end=False)


def _update(run: TrainingRun, micro: Sequence[Batch]) -> None:
    """Forward, backward, optimizer step."""
    state = run.state
    if run.monitor is not None:
        run.monitor.begin(state.step, micro[0])
    run.nonfinite.watch(state.step, [name for batch in micro for name in batch.names])
    update = run.stepper.step(state, micro)
    if update.bad:
        run.nonfinite.write({state.step + 1: update.bad})
        run.nonfinite.record_skipped_step(state.step)
    else:
        state.window.add(state.step, update.logs, update.counted)
    if run.monitor is not None:
        run.monitor.end(state.step)


def _log(run: TrainingRun, lr: float) -> None:
    state = run.state
    if values := state.window.read(run.stepper.world):
        values = {**values, "lr": lr, **run.clock.read()}
        if run.monitor is not None:
            values |= run.monitor.read(values["images_per_s"])
        run.logger.train(state.step, state.step / run.plan.steps_per_epoch, values)
        run.clock.reset()


def _sync_control(run: TrainingRun, micro: Sequence[Batch]) -> bool:
    """What the processes do before a step: stop, save, count bad samples.

    Returns:
        Whether every process has something to train on.
    """
    bad = [sample for batch in micro for sample in batch.bad]
    agreed = run.control.all_reduce(
        Control(
            stop=run.stop.name is not None,
            save=run.stepper.world.is_main and run.saver.minutes_have_passed(),
            failed=run.saver.failed,
            empty=not all(map(len, micro)),
            bad_samples=len(bad),
        )
    )
    if agreed.failed:
        run.saver.finish()  # raises on rank 0
        raise RunError("rank 0 could not save", everywhere=True)
    if agreed.bad_samples:
        run.bad_samples.add(run.control.gather(bad))
        run.bad_samples.check()
    if (agreed.stop or agreed.save) and _rolled_back(run):
        raise RunError("loss or gradient is not finite", everywhere=True)
    if agreed.stop:
        acknowledge()
        run.saver.save(run.state, at_epoch_end=False, wait=True)
        raise Stopped(_stopped(run))
    if agreed.save:
        run.saver.save(run.state, at_epoch_end=False)
    return not agreed.empty


def _rolled_back(run: TrainingRun) -> bool:
    """Whether a loss or gradient since the last check was not finite, and the run rolled back.

    In fp16 the gradient may overflow: the scaler skips the step and lowers the scale of the loss.

    Raises:
        RunError: It was, and the run is to stop.
    """
    scaler = run.state.scaler
    ignored = GRAD_NORM if scaler.is_enabled() else ""
    bad = run.state.window.bad_values(run.stepper.world, ignored=ignored)
    if scaler.is_enabled() and not bad and scaler.get_scale() < MIN_LOSS_SCALE:
        bad = {run.state.step: [GRAD_NORM]}
    if not bad:
        run.nonfinite.checked()
        return False
    run.nonfinite.write(bad)
    if not run.rolls_back:
        run.saver.finish()  # the last finite checkpoint, which exiting would cut off
        raise run.nonfinite.stop(bad)
    from utils.training.rollback import roll_back

    roll_back(run, bad)
    return True


def _finish_epoch(run: TrainingRun) -> None:
    """Evaluate and save what is due after an epoch."""
    state, plan, log, saver = run.state, run.plan, run.log, run.saver
    epoch = state.step // plan.steps_per_epoch
    finished = state.step == plan.total_steps
    chosen = due_evaluators(run.evaluators, log, epoch, finished)
    if chosen:
        before = saver.defer(state)  # of the epoch that is not scored yet
        state.epoch = epoch
        try:
            with run.stop.interrupting():
                at = state.step / plan.steps_per_epoch
                values = evaluate(state, chosen, run.logger, at, run.goal)
        except Stopped as err:
            saver.write_now(before)
            raise Stopped(_stopped(run)) from err
        state.scored = state.step
        if run.goal is not None and state.improve(run.goal, values):
            saver.save_best(state)
    state.epoch = epoch
    patience = run.log.early_stop_patience
    finished |= patience is not None and state.stale >= patience
    if finished or epoch % saver.options.save_ckpt_freq == 0 or saver.due_at(state.step):
        saver.save(state, at_epoch_end=state.step == epoch * plan.steps_per_epoch)
    run.clock.reset()


def _stopped(run: TrainingRun) -> str:
    saved = f"saved in {run.saver.folder}: run the same command to resume"
    return (
        f"{run.stop.name or 'a signal'} after step {run.state.step}; "
        f"{saved if run.saver.active else 'nothing was saved'}"
    )


@contextmanager
def _named_causes() -> Iterator[None]:
    """Turn what the machine does to a run into errors that say what to do."""
    try:
        yield
    except Exception as err:
        from utils.distributed.process_failures import as_run_error

        explained = as_run_error(err)
        if explained is None:
            raise
        raise explained from err


def due_evaluators(
    evaluators: Sequence[Evaluator], log: LogOptions, epoch: int, finished: bool
) -> Sequence[Evaluator]:
    """Those that run after ``epoch``; pictures where ``picture_freq`` epochs have passed."""
    scored = finished or epoch % log.eval_freq == 0
    every = log.picture_freq
    drawn = finished or (scored and epoch // every > (epoch - log.eval_freq) // every)

    def is_due(evaluator: Evaluator) -> bool:
        if isinstance(evaluator, PeriodicEvaluator):
            return finished or epoch % evaluator.freq == 0
        return drawn if isinstance(evaluator, PictureEvaluator) else scored

    return list(filter(is_due, evaluators))


def evaluate(
    state: TrainState,
    evaluators: Sequence[Evaluator],
    logger: RunLogger,
    epoch: float,
    goal: Goal | None = None,
) -> dict[str, float]:
    """Run every evaluator on the model in evaluation mode and log one row."""
    model = to_device_of(state.model, state.full_scored_model())
    state.task.eval()
    model.eval()
    values: dict[str, float] = {}
    for evaluator in evaluators:
        values.update(evaluator.run(model, state.step))
    state.task.train()
    logger.eval(state.step, epoch, values, goal, state.best)
    return values


def to_device_of(reference: nn.Module, model: nn.Module) -> nn.Module:
    """``model``; a copy where ``reference`` is, if it is elsewhere (an average on the CPU)."""
    here, there = (next(m.parameters()).device for m in (reference, model))
    return model if here == there else copy.deepcopy(model).to(here)
