"""Times: of steps, interleaved; of matrix products; of the parts of a step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from multimae.nn.layers import run_blocks
from multimae.output_adapters.spatial import SpatialOutputAdapter
from tools.bench.counting import Product
from utils.tasks.pretraining import PretrainTask
from utils.training.stepper import Precision

SMALL = 1e6  # FLOPs of products that are not timed
BURST = 10  # on a GPU, whose work is only started by a call


@dataclass
class Times:
    """Seconds of every timed step, by the wall and by the processor's clock of this process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The fastest step."""
        return min(self.wall)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.wall)


def synchronize(device: torch.device) -> None:
    """Wait for all that was started."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    updates: Mapping[str, Callable[[int], None]],
    steps: int,
    warmup: int,
    device: torch.device,
    between: Callable[[], None] | None = None,
) -> dict[str, Times]:
    """Some steps of each, then the next of each: whatever disturbs the machine meets all of them.

    On a GPU ``BURST`` steps are started one after the other, as in a training, before one waits for
    them. ``between`` is called before every timed round.
    """
    times = {name: Times() for name in updates}
    burst = burst_of(device)
    for i in range(warmup + steps):
        if between is not None and i >= warmup:
            between()
        for name, update in updates.items():
            spent = timed(update, device, range(i * burst, (i + 1) * burst))
            if i >= warmup:
                times[name].wall.append(spent.wall)
                times[name].cpu.append(spent.cpu)
    return times


def speed_up(fast: Sequence[float], slow: Sequence[float]) -> dict[str, float]:
    """How many times faster: the shortest steps, and the median of the rounds."""
    return {
        "best": min(slow) / min(fast),
        "median": statistics.median(s / f for s, f in zip(slow, fast, strict=True)),
    }


@dataclass(frozen=True)
class Spent:
    """Seconds by the wall, and by the processor's clock of this process (all threads)."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Ceiling:
    """FLOP/s by the wall; and per second that this process computes, on a busy machine."""

    wall: float
    cpu: float


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 3) -> Spent:
    """The shortest of a few runs of ``work``, by each clock; on a GPU, of a few bursts."""
    work()
    runs = [timed(lambda _: work(), device, range(burst_of(device))) for _ in range(repeats)]
    return Spent(min(run.wall for run in runs), min(run.cpu for run in runs))


def timed(work: Callable[[int], object], device: torch.device, calls: range) -> Spent:
    """Seconds of one of several ``calls`` of ``work``, between two waits for the device."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for call in calls:
        work(call)
    synchronize(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Spent(wall / len(calls), cpu / len(calls))


def burst_of(device: torch.device) -> int:
    """How many calls are timed at once."""
    return 1 if device.type == "cpu" else BURST


class ProductTimes:
    """How long matrix products take by themselves, measured again and again; the shortest counts.

    Products inside a fused attention kernel are not counted.
    """

    def __init__(self, products: Iterable[Product], device: torch.device) -> None:
        """Nothing measured yet; ``products`` may repeat."""
        self.device = device
        self.spent = {p: Spent(math.inf, math.inf) for p in products if p.flops >= SMALL}

    def measure(self) -> None:
        """Each product once more."""
        for product, before in self.spent.items():
            shape = (product.b,) if product.b > 1 else ()
            a = torch.randn(*shape, product.m, product.k, device=self.device).to(product.dtype)
            b = torch.randn(*shape, product.k, product.n, device=self.device).to(product.dtype)

            run = seconds(partial(torch.matmul, a, b), self.device, repeats=2)
            self.spent[product] = Spent(min(before.wall, run.wall), min(before.cpu, run.cpu))

    def ceiling(self, products: Mapping[Product, int]) -> Ceiling:
        """FLOP/s of a step that does nothing but its products, each as often as it occurs."""
        counted = {p: n for p, n in products.items() if p in self.spent}
        flops = sum(n * p.flops for p, n in counted.items())
        wall = sum(n * self.spent[p].wall for p, n in counted.items())
        cpu = sum(n * self.spent[p].cpu for p, n in counted.items())
        return Ceiling(flops / max(wall, 1e-12), flops / max(cpu, 1e-12))


def shares(
    task: PretrainTask,
    x: Mapping[str, Tensor],
    masks: object,
    precision: Precision,
    optimiser_seconds: float,
) -> dict[str, float]:
    """Share of each part in a step: forward and backward of the part alone, and the optimiser.

    Parts are cut apart by detaching what one hands to the next.
    """
    from multimae.nn.masking import TokenMasks

    assert isinstance(masks, TokenMasks)  # noqa: S101 - for the type checker
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
    (encoded,) = part("encoder", lambda: [_encode(task, tokens)])
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


def _encode(task: PretrainTask, tokens: Tensor) -> Tensor:
    model = task.model
    x = model.with_global_tokens(tokens)
    return run_blocks(model.encoder, x, recompute=model.grad_checkpointing)
