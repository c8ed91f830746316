"""Measurements: how fast the data comes, how fast a step is, and both together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch

from tools.planner.planned_run import PlannedRun
from tools.planner.resources import memory_limit, memory_used
from utils.data.batches import Batch, collate
from utils.data.dataset import build_train_loader
from utils.data.samplers import GlobalBatchSampler, SampleKey
from utils.logs.window import StepClock

_LOADER_BATCH = 16
_DISTINCT = 64


@dataclass(frozen=True)
class StepMeasurement:
    """StepMeasurements of one batch size.

    Attributes:
        batch_size: Images per step.
        images_per_s: Forward, backward and optimiser, with the data at hand.
        memory: Most bytes taken.
    """

    batch_size: int
    images_per_s: float
    memory: int


@dataclass(frozen=True)
class StepMeasurements:
    """Batch sizes tried, in rising order, and why no larger one was."""

    probes: list[StepMeasurement]
    stopped: str


@dataclass(frozen=True)
class LoopMeasurement:
    """Training as it would be: loader and steps.

    Attributes:
        num_workers: Loader processes.
        images_per_s: Of this process.
        data_wait: Share of the time spent waiting for data, 0 to 1.
    """

    num_workers: int
    images_per_s: float
    data_wait: float


def worker_counts(cores: int) -> list[int]:
    """Numbers of loader processes to try: 0, 1, 2, 4, ... and all cores."""
    powers = [1 << i for i in range(cores.bit_length()) if 1 << i <= cores]
    return sorted({0, cores, *powers})


def loader_rate(run: PlannedRun, num_workers: int, seconds: float) -> float:
    """Images per second of the loader alone, whose batches nobody keeps waiting."""
    batch_size = min(_LOADER_BATCH, len(run.train_set))
    batches = _batches(run, batch_size, num_workers)
    start = time.perf_counter()
    for _ in range(1 + num_workers):  # while the workers start
        next(batches)
        if time.perf_counter() - start > seconds:
            break
    start, images = time.perf_counter(), 0
    while True:
        images += len(next(batches))
        elapsed = time.perf_counter() - start
        if elapsed > seconds:
            return images / elapsed


def step_rates(run: PlannedRun, sizes: Sequence[int], seconds: float) -> StepMeasurements:
    """StepMeasurements of every batch size until memory, or the time, is used up.

    Args:
        run: The run.
        sizes: Images per step, rising.
        seconds: For all of them.
    """
    device = run.world.device
    share = seconds / len(sizes)
    probes: list[StepMeasurement] = []
    for size in sizes:
        if probes and 2 * size / probes[-1].images_per_s > 3 * share:
            return StepMeasurements(probes, "the time was up, see --seconds")
        if _exceeds_memory(probes, size, memory_limit(device)):
            return StepMeasurements(probes, "memory")
        try:
            rate = step_rate(run, size, share)
        except torch.OutOfMemoryError:
            run.state.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return StepMeasurements(probes, "memory")
        probes.append(StepMeasurement(size, rate, memory_used(device)))
    return StepMeasurements(probes, "")


def step_rate(run: PlannedRun, batch_size: int, seconds: float) -> float:
    """Images per second of steps on one batch, after a first one."""
    device = run.world.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    stepper, batches = run.stepper(batch_size), [_sample(run, batch_size)]
    stepper.step(run.state, batches)
    _synchronize(device)
    times = [time.perf_counter()]
    while len(times) < 2 or times[-1] - times[0] < seconds:
        stepper.step(run.state, batches)
        _synchronize(device)
        times.append(time.perf_counter())
    # The median: a machine that others use, too, has slow moments.
    return batch_size / median(b - a for a, b in pairwise(times))


def measure_loop(
    run: PlannedRun, batch_size: int, num_workers: int, seconds: float
) -> LoopMeasurement:
    """Training for ``seconds``, after two steps."""
    device, stepper = run.world.device, run.stepper(batch_size)
    clock = StepClock()
    batches = clock.watch(_batches(run, batch_size, num_workers))
    for _ in range(2):
        stepper.step(run.state, [next(batches)])
    _synchronize(device)
    clock.reset()
    start = time.perf_counter()
    while True:
        stepper.step(run.state, [next(batches)])
        _synchronize(device)
        clock.count(batch_size)
        if time.perf_counter() - start > seconds:
            values = clock.read()
            return LoopMeasurement(num_workers, values["images_per_s"], values["data_wait"])


def _batches(run: PlannedRun, batch_size: int, num_workers: int) -> Iterator[Batch]:
    """Training batches without end."""
    data = run.cfg.data
    sampler = GlobalBatchSampler(len(run.train_set), batch_size, seed=run.cfg.runtime.seed)
    loader = build_train_loader(
        run.train_set, sampler, num_workers=num_workers, pin_memory=data.pin_mem
    )
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        yield from loader


def _sample(run: PlannedRun, batch_size: int) -> Batch:
    """A batch; of few images, where it is large."""
    count = min(batch_size, len(run.train_set), _DISTINCT)
    batch = collate([run.train_set[SampleKey(0, i)] for i in range(count)])
    rows = torch.arange(batch_size) % count
    images = {name: x[rows] for name, x in batch.images.items()}
    return Batch(images, [batch.names[i] for i in rows.tolist()])


def _exceeds_memory(probes: Sequence[StepMeasurement], size: int, limit: int | None) -> bool:
    """Whether a batch would take too much memory, as a line through the last two tells."""
    if limit is None or len(probes) < 2:
        return False
    a, b = probes[-2:]
    per_image = (b.memory - a.memory) / (b.batch_size - a.batch_size)
    return b.memory + per_image * (size - b.batch_size) > limit


def _synchronize(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
