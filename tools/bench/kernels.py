"""Operators and GPU kernels of a step, by time, with the least time that their work takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from tools.bench.counting import StepWork
from tools.bench.timing import seconds, synchronize

STEPS = 3
_KINDS = (
    ("attention", ("fmha", "flash", "attention", "cudnn_generated", "softmax")),
    ("products", ("gemm", "nvjet", "cutlass", "matmul", "mm", "cublas", "linear")),
    ("convolutions", ("conv", "winograd")),
    ("optimizer", ("adam", "sgd", "multi_tensor", "foreach")),
    ("sorting", ("sort", "radix")),
    ("copies", ("memcpy", "memset", "copy", "cat")),
)
_ADAMW_BYTES = 28  # per parameter: reads weight, gradient, two moments; writes all but the gradient


@dataclass(frozen=True)
class KernelRow:
    """Time of a kernel, or on a CPU of an operator, in one step."""

    name: str
    kind: str
    calls: float
    ms: float
    share: float


def kernel_rows(step: Callable[[int], object], device: torch.device) -> list[KernelRow]:
    """Profile ``STEPS`` steps; the slowest first."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    synchronize(device)
    with profile(activities=activities) as recorder:
        for i in range(STEPS):
            step(i)
        synchronize(device)
    found = {}
    for event in recorder.key_averages():
        is_kernel = str(event.device_type).endswith("CUDA")
        us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if us > 0 and is_kernel == on_gpu:
            found[event.key] = (event.count / STEPS, us / 1e3 / STEPS)
    total = sum(ms for _, ms in found.values())
    rows = [
        KernelRow(name, kind_of(name), calls, ms, ms / total) for name, (calls, ms) in found.items()
    ]
    return sorted(rows, key=lambda row: -row.ms)


def kind_of(name: str) -> str:
    """What a kernel computes, by its name."""
    lower = name.lower()
    return next((kind for kind, parts in _KINDS if any(p in lower for p in parts)), "element-wise")


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a large copy, read and written."""
    size = 2**28 if device.type == "cuda" else 2**24
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    return 8 * size / seconds(lambda: target.copy_(source), device, repeats=3).wall


def floors(
    work: StepWork, num_parameters: int, flop_per_s: float, bytes_per_s: float
) -> dict[str, float]:
    """Least milliseconds of a step's parts, at measured rates.

    ``products``: all counted operations. ``activations``: what is saved for the backward pass,
    written once and read once. ``optimizer``: AdamW in float32.
    """
    return {
        "products": work.flops / flop_per_s * 1e3,
        "activations": 2 * work.saved_bytes / bytes_per_s * 1e3,
        "optimizer": _ADAMW_BYTES * num_parameters / bytes_per_s * 1e3,
    }


def kernel_report(rows: Iterable[KernelRow], least: dict[str, float], limit: int = 40) -> str:
    """Text table: kinds, floors, then the slowest kernels."""
    rows = list(rows)
    kinds: dict[str, float] = defaultdict(float)
    for row in rows:
        kinds[row.kind] += row.ms
    lines = [f"{'kind':<16}{'ms':>10}{'share':>8}"]
    total = sum(kinds.values())
    lines += [
        f"{kind:<16}{ms:10.3f}{ms / total:8.1%}"
        for kind, ms in sorted(kinds.items(), key=lambda item: -item[1])
    ]
    lines.append("least time, ms: " + ", ".join(f"{k} {v:.3f}" for k, v in least.items()))
    lines.append(f"{'calls':>8}{'ms':>10}{'share':>8}  kernel")
    lines += [f"{r.calls:8.1f}{r.ms:10.3f}{r.share:8.1%}  {r.name[:100]}" for r in rows[:limit]]
    return "\n".join(lines)
