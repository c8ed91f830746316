"""Measure the loader, the training step, and both together."""

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
from utils.data.batches import Batch
from utils.data.dataset import build_loader
from utils.data.samplers import GlobalBatchSampler, SampleKey
from utils.logs.window import StepClock

_LOADER_BATCH = 16
_DISTINCT = 64


@dataclass(frozen=True)
class StepMeasurement:
    """Speed and memory of steps at one batch size.

    Attributes:
        batch_size: Images per step.
        images_per_s: Forward, backward and optimizer, without loading.
        memory: Peak bytes.
    """

    batch_size: int
    images_per_s: float
    memory: int


@dataclass(frozen=True)
class StepMeasurements:
    """Batch sizes tried, ascending, and why no larger one was."""

    probes: list[StepMeasurement]
    stopped: str


@dataclass(frozen=True)
class LoopMeasurement:
    """Speed of loader and steps together.

    Attributes:
        num_workers: Loader processes.
        images_per_s: Speed of this process.
        data_wait: Fraction of the time spent waiting for data.
    """

    num_workers: int
    images_per_s: float
    data_wait: float


def worker_counts(cores: int) -> list[int]:
    """Return the worker counts to try: 0, the powers of two, and all cores."""
    powers = [1 << i for i in range(cores.bit_length()) if 1 << i <= cores]
    return sorted({0, cores, *powers})


def loader_rate(run: PlannedRun, num_workers: int, seconds: float) -> float:
    """Measure the loader alone, in images per second."""
    batch_size = min(_LOADER_BATCH, len(run.train_set))
    batches = _batches(run, batch_size, num_workers)
    start = time.perf_counter()
    for _ in range(1 + num_workers):  # warm-up: the workers start
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
    """Measure steps at rising batch sizes until memory or time runs out.

    Args:
        run: Run to measure.
        sizes: Batch sizes, ascending.
        seconds: Time for all sizes.
    """
    device = run.world.device
    share = seconds / len(sizes)
    probes: list[StepMeasurement] = []
    for size in sizes:
        if probes and 2 * size / probes[-1].images_per_s > 3 * share:
            return StepMeasurements(probes, "out of time, see --seconds")
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
    """Measure steps on one batch, in images per second, after a warm-up step."""
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
    # The median is robust to other load on the machine.
    return batch_size / median(b - a for a, b in pairwise(times))


def measure_loop(
    run: PlannedRun, batch_size: int, num_workers: int, seconds: float
) -> LoopMeasurement:
    """Train for ``seconds`` after two warm-up steps."""
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
    """Yield training batches endlessly."""
    data = run.cfg.data
    sampler = GlobalBatchSampler(len(run.train_set), batch_size, seed=run.cfg.runtime.seed)
    loader = build_loader(run.train_set, sampler, num_workers=num_workers, pin_memory=data.pin_mem)
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        yield from loader


def _sample(run: PlannedRun, batch_size: int) -> Batch:
    """Build a batch, repeating images in large ones."""
    count = min(batch_size, len(run.train_set), _DISTINCT)
    samples = [run.train_set[SampleKey(0, i)] for i in range(count)]
    batch = run.train_set.transform.collate(samples).to("cpu")
    indices = torch.arange(batch_size) % count
    images = {name: x[indices] for name, x in batch.images.items()}
    return Batch(images, [batch.names[i] for i in indices.tolist()])


def _exceeds_memory(probes: Sequence[StepMeasurement], size: int, limit: int | None) -> bool:
    """Extrapolate memory linearly from the last two batch sizes."""
    if limit is None or len(probes) < 2:
        return False
    a, b = probes[-2:]
    per_image = (b.memory - a.memory) / (b.batch_size - a.batch_size)
    return b.memory + per_image * (size - b.batch_size) > limit


def _synchronize(device: torch.device) -> None:
    """Wait for pending work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
