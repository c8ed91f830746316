"""Decide how to run a configuration from measurements of the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from multimae.specs.errors import UserError
from tools.planner.measurements import (
    LoopMeasurement,
    StepMeasurement,
    StepMeasurements,
    loader_rate,
    measure_loop,
    step_rate,
    step_rates,
    worker_counts,
)
from tools.planner.planned_run import PlannedRun
from tools.planner.resources import DiskUse, disk_use
from utils.config.runtime_options import available_cores
from utils.training.schedule import RunPlan

# Fractions of the measuring time.
_LOADER, _STEPS, _THREADS, _LOOP = 0.3, 0.35, 0.15, 0.2
_MAX_SIZES = 8
# Prefer less memory or fewer workers at this fraction of the best speed.
_GOOD_ENOUGH = 0.97
# Loaders vary in speed: require this margin over the steps.
_LOADER_MARGIN = 1.2
_DATA_BOUND = 0.15


@dataclass(frozen=True)
class Measurements:
    """All measurements.

    Attributes:
        loader: Images per second by number of loader processes.
        steps: Speed and memory by batch size.
        threads: Images per second by CPU threads at the chosen batch size.
        together: Loader and steps combined, in one process.
    """

    loader: dict[int, float]
    steps: StepMeasurements
    threads: dict[int, float]
    together: LoopMeasurement


@dataclass(frozen=True)
class Advice:
    """Suggested settings and expected speed.

    Attributes:
        measured: The measurements.
        processes: Processes on this machine.
        best: The chosen batch.
        num_threads: CPU threads; ``None`` on a GPU.
        plan: Steps and learning rate.
        bottleneck: Description of what limits the speed.
        images_per_s: Expected speed of all processes.
        disk: Disk space of the run.
    """

    measured: Measurements
    processes: int
    best: StepMeasurement
    num_threads: int | None
    plan: RunPlan
    bottleneck: str
    images_per_s: float
    disk: DiskUse

    @property
    def eta(self) -> float:
        """Training time in seconds, without evaluations."""
        return self.plan.total_steps * self.plan.global_batch / self.images_per_s


def advise(run: PlannedRun) -> Advice:
    """Measure and decide.

    Raises:
        UserError: The global batch does not divide by the processes, or no batch fits in memory.
    """
    options, device = run.cfg.plan, run.world.device
    processes = options.processes or (torch.cuda.device_count() if device.type == "cuda" else 1)
    share = batch_per_process(run, processes)
    sizes = [size for size in batch_sizes(share) if _allowed(run, size)]
    if not sizes:
        raise UserError(f"no valid batch size divides {share} images per process and step")
    run.plan(share, 1, processes)  # raises if the schedule is invalid for every batch size
    seconds = options.seconds
    counts = worker_counts(available_cores())
    loader = {n: loader_rate(run, n, _LOADER * seconds / len(counts)) for n in counts}
    steps = step_rates(run, sizes, _STEPS * seconds)
    if not steps.probes:
        raise UserError(
            f"a batch of {sizes[0]} does not fit in memory: choose a smaller model or input_size"
        )
    best = best_batch(steps.probes)
    threads = _try_threads(run, best.batch_size, _THREADS * seconds)
    num_threads = max(threads, key=lambda n: threads[n]) if threads else None
    if num_threads:
        torch.set_num_threads(num_threads)
    needed = processes * max([best.images_per_s, *threads.values()])
    workers = -(-enough_workers(loader, needed) // processes)
    # On a CPU, workers compete with the steps for cores: also try none.
    trials = sorted({workers, 0} if device.type == "cpu" else {workers})
    tried = [measure_loop(run, best.batch_size, n, _LOOP * seconds / len(trials)) for n in trials]
    chosen = max(tried, key=lambda t: t.images_per_s)
    measured = Measurements(loader, steps, threads, chosen)
    plan = run.plan(best.batch_size, share // best.batch_size, processes)
    rate = processes * chosen.images_per_s
    if processes > 1:
        rate = min(rate, max(loader.values()))
    bottleneck = bottleneck_of(measured, needed, processes)
    disk = disk_use(run, plan)
    return Advice(measured, processes, best, num_threads, plan, bottleneck, rate, disk)


def batch_per_process(run: PlannedRun, processes: int) -> int:
    """Return the images per step and process.

    Raises:
        UserError: The global batch does not divide evenly or exceeds the training set.
    """
    cfg = run.cfg
    own = cfg.runtime.batch_size * cfg.optim.update_freq * cfg.runtime.world_size
    total = cfg.plan.global_batch or own
    if total % processes:
        raise UserError(
            f"a global batch of {total} is not divisible by {processes} processes: set "
            "--global_batch or --processes"
        )
    if total > len(run.train_set):
        raise UserError(
            f"the training set has {len(run.train_set)} images, fewer than one global batch of "
            f"{total}: set --global_batch, or lower --batch_size"
        )
    return total // processes


def batch_sizes(share: int) -> list[int]:
    """Return the batch sizes to try: divisors of ``share`` at least 1.5x apart, ascending."""
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    kept = [share]
    for n in reversed(divisors):
        if n * 1.5 <= kept[-1]:
            kept.append(n)
    return sorted(kept[:_MAX_SIZES])


def best_batch(probes: Sequence[StepMeasurement]) -> StepMeasurement:
    """Return the smallest batch at 97 % of the best speed or more."""
    top = max(probe.images_per_s for probe in probes)
    return next(probe for probe in probes if probe.images_per_s >= _GOOD_ENOUGH * top)


def enough_workers(loader: Mapping[int, float], needed: float) -> int:
    """Return the fewest workers that outrun the steps, or that come close to the best speed."""
    target = min(_LOADER_MARGIN * needed, _GOOD_ENOUGH * max(loader.values()))
    return min(count for count, rate in loader.items() if rate >= target)


def bottleneck_of(measured: Measurements, needed: float, processes: int) -> str:
    """Describe what limits the speed.

    Args:
        measured: The measurements.
        needed: Images per second that the steps of all processes consume.
        processes: Processes of the run.
    """
    fastest = max(measured.loader.values())
    if measured.together.data_wait > _DATA_BOUND or fastest < needed:
        wait = f"{measured.together.data_wait:.0%} of the time is spent waiting"
        return f"data: {fastest:.4g} img/s loaded, {needed:.4g} img/s needed; {wait}"
    if measured.steps.stopped == "memory" and _still_rising(measured.steps.probes):
        return "memory: larger batches would be faster but do not fit"
    ratio = fastest / needed
    return f"computing: the loader is {ratio:.2g}x as fast as the steps"


def _still_rising(probes: Sequence[StepMeasurement]) -> bool:
    return len(probes) > 1 and probes[-1].images_per_s > 1.1 * probes[-2].images_per_s


def _allowed(run: PlannedRun, batch_size: int) -> bool:
    """Return whether the batch size is valid (Mixup needs an even one)."""
    mixes = getattr(run.cfg.data, "mixes", False)
    return not (mixes and batch_size % 2)


def _try_threads(run: PlannedRun, batch_size: int, seconds: float) -> dict[int, float]:
    """Measure the speed by CPU threads; empty on a GPU or with --num_threads."""
    if run.world.device.type != "cpu" or run.cfg.runtime.num_threads:
        return {}
    counts = sorted({1, math.ceil(available_cores() / 2), available_cores()})
    rates = {}
    for count in counts:
        torch.set_num_threads(count)
        rates[count] = step_rate(run, batch_size, seconds / len(counts))
    return rates
