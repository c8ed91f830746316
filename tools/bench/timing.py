"""Clocks: interleaved steps, matrix products, and the parts of a step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from multimae.nn.masking import TokenMasks
from multimae.output_adapters.spatial import SpatialOutputAdapter
from tools.bench.counting import Product
from utils.tasks.pretraining import PretrainTask
from utils.training.stepper import Precision

MIN_FLOPS = 1e6  # smaller products are not timed
GPU_BURST = 10  # calls between two synchronizations


@dataclass
class Times:
    """Seconds of every timed step: wall time, and CPU time of this process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """Wall time of the fastest step."""
        return min(self.wall)

    @property
    def median(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall)


def synchronize(device: torch.device) -> None:
    """Wait for the device's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    updates: Mapping[str, Callable[[int], None]],
    steps: int,
    warmup: int,
    device: torch.device,
    between: Callable[[], None] | None = None,
) -> dict[str, Times]:
    """Time the contenders' steps alternately: other load affects all of them alike.

    On a GPU, ``GPU_BURST`` steps are queued before each synchronization, as in training.
    ``between`` is called before every timed round.
    """
    times = {name: Times() for name in updates}
    burst = burst_of(device)
    for i in range(warmup + steps):
        if between is not None and i >= warmup:
            between()
        for name, update in updates.items():
            duration = timed(update, device, range(i * burst, (i + 1) * burst))
            if i >= warmup:
                times[name].wall.append(duration.wall)
                times[name].cpu.append(duration.cpu)
    return times


def speed_up(fast: Sequence[float], slow: Sequence[float]) -> dict[str, float]:
    """Ratio of the fastest steps, and median ratio of the rounds."""
    return {
        "best": min(slow) / min(fast),
        "median": statistics.median(s / f for s, f in zip(slow, fast, strict=True)),
    }


@dataclass(frozen=True)
class Duration:
    """Seconds: wall time, and CPU time of this process (all threads)."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Ceiling:
    """FLOP/s by wall time, and by CPU time of this process (for busy machines)."""

    wall: float
    cpu: float


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 3) -> Duration:
    """Shortest of a few runs of ``work`` by each clock; on a GPU, of a few bursts."""
    work()
    runs = [timed(lambda _: work(), device, range(burst_of(device))) for _ in range(repeats)]
    return Duration(min(run.wall for run in runs), min(run.cpu for run in runs))


def timed(work: Callable[[int], object], device: torch.device, calls: range) -> Duration:
    """Mean duration of ``calls`` of ``work`` between two synchronizations."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for call in calls:
        work(call)
    synchronize(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Duration(wall / len(calls), cpu / len(calls))


def burst_of(device: torch.device) -> int:
    """Number of calls timed together."""
    return 1 if device.type == "cpu" else GPU_BURST


class ProductTimes:
    """Shortest measured times of matrix products.

    Products inside fused attention kernels are not included.
    """

    def __init__(
        self, products: Iterable[tuple[Product, torch.dtype]], device: torch.device
    ) -> None:
        """Prepare to time these products, by shape and dtype; they may repeat."""
        self.device = device
        self.times = {
            key: Duration(math.inf, math.inf) for key in products if key[0].flops >= MIN_FLOPS
        }

    def measure(self) -> None:
        """Time every product once more."""
        for (product, dtype), before in self.times.items():
            shape = (product.b,) if product.b > 1 else ()
            a = torch.randn(*shape, product.m, product.k, device=self.device).to(dtype)
            b = torch.randn(*shape, product.k, product.n, device=self.device).to(dtype)

            run = seconds(partial(torch.matmul, a, b), self.device, repeats=2)
            self.times[product, dtype] = Duration(
                min(before.wall, run.wall), min(before.cpu, run.cpu)
            )

    def ceiling(self, products: Mapping[Product, int], dtype: torch.dtype) -> Ceiling:
        """FLOP/s of a step that computes its matrix products only (product -> calls)."""
        counted = {p: n for p, n in products.items() if (p, dtype) in self.times}
        flops = sum(n * p.flops for p, n in counted.items())
        wall = sum(n * self.times[p, dtype].wall for p, n in counted.items())
        cpu = sum(n * self.times[p, dtype].cpu for p, n in counted.items())
        return Ceiling(flops / max(wall, 1e-12), flops / max(cpu, 1e-12))


def shares(
    task: PretrainTask,
    x: Mapping[str, Tensor],
    masks: TokenMasks,
    precision: Precision,
    optimiser_seconds: float,
) -> dict[str, float]:
    """Fraction of the step time per part: forward and backward of each part, and the optimizer.

    Parts are separated by detaching their inputs.
    """
    model, device = task.model, masks.ids_keep.device
    layout = model.layout_of(x)
    found: dict[str, float] = {}

    def part(name: str, run: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        def once() -> list[Tensor]:
            with precision.autocast():
                out = [t for t in run() if t.requires_grad]
            torch.autograd.backward(out, [torch.ones_like(t) for t in out])
            return out

        found[name] = found.get(name, 0.0) + seconds(once, device, repeats=1).wall
        with precision.autocast():
            return [t.detach().requires_grad_() for t in run()]

    inputs = {name: x[name] for name in model.input_adapters}
    (tokens,) = part("embedding", lambda: [model.embed_visible(inputs, layout, masks)])
    (encoded,) = part("encoder", lambda: [model.encode_tokens(tokens)])
    for m in task.outputs:
        decoder = model.output_adapters[m.name]
        if not isinstance(decoder, SpatialOutputAdapter):
            continue
        (patches,) = part("decoders", lambda d=decoder: [d.forward_patches(  # type: ignore[misc]
            encoded, layout, masks.ids_keep, masks.ids_restore)])  # fmt: skip
        loss, mask = task.losses[m.name], masks.task_masks.get(m.data_name)
        part("loss", lambda p=patches, f=loss, t=x[m.name], k=mask: [f.from_patches(p, t, k)])  # type: ignore[misc]
    task.zero_grad(set_to_none=True)
    found["optimiser"] = optimiser_seconds
    total = sum(found.values())
    return {name: value / total for name, value in found.items()}
