"""Work of a training step: FLOPs, matrix products, saved memory and host syncs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from utils.logs.efficiency import count_flops

# Operators whose result, or its shape, is needed on the host. Indexing by a mask calls nonzero.
_SYNCS = {
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::bincount",
}
# Matrix products, and the index of their first factor; the second follows.
_PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}


@dataclass(frozen=True)
class Product:
    """A matrix product (b, m, k) x (b, k, n); b = 1 without a batch."""

    b: int
    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.b * self.m * self.k * self.n


@dataclass(frozen=True)
class StepWork:
    """Work of one step.

    Attributes:
        flops: Floating-point operations of matrix products and convolutions.
        saved_bytes: Memory kept for the backward pass.
        products: Matrix product -> calls, without those inside fused attention kernels.
        host_syncs: Operators that wait for the device -> calls.
    """

    flops: int
    saved_bytes: int
    products: Counter[Product]
    host_syncs: Counter[str]


def measure_work(step: Callable[[], object], forward: Callable[[], object]) -> StepWork:
    """Run ``step`` twice and its forward pass once, and count their work."""
    flops = count_flops(step)
    saved = count_saved_bytes(forward)
    products: Counter[Product] = Counter()
    events = _record(step)
    for event in events:
        first = _PRODUCTS.get(event.name)
        if first is not None:
            a, b = event.input_shapes[first : first + 2]
            products[Product(a[0] if len(a) == 3 else 1, a[-2], a[-1], b[-1])] += 1
    return StepWork(flops, saved, products, _syncs_among(events))


def count_host_syncs(work: Callable[[], object]) -> Counter[str]:
    """Operators of ``work`` that wait for the device -> calls."""
    return _syncs_among(_record(work))


def _record(work: Callable[[], object]) -> list[Any]:
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        work()
    return list(recorded.events() or ())


def _syncs_among(events: list[Any]) -> Counter[str]:
    return Counter(
        event.name.removeprefix("aten::")
        for event in events
        if event.name in _SYNCS or (event.name == "aten::item" and not _inside_kernel(event))
    )


def _inside_kernel(event: Any) -> bool:
    """Whether an operator was called by another one: CPU optimizers read their step like that."""
    parent = event.cpu_parent
    return parent is not None and parent.name.startswith("aten::_f")


def count_saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes that ``forward`` allocates and that live as long as what it returns."""
    on_gpu = torch.cuda.memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = forward()
    on_gpu = torch.cuda.memory_allocated() - on_gpu
    del kept
    return on_gpu + sum(int(event.self_cpu_memory_usage) for event in recorded.events() or ())
