"""How well a run uses its devices: model FLOPs utilization (MFU) and memory.

MFU is the model's floating-point operations per second over the peak of the device. Counted are the
matrix products and convolutions of a forward and backward pass, without recomputed activations.
"""

from __future__ import annotations

import copy
import re
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from utils.data.batches import Batch
from utils.distributed.world import World
from utils.tasks.base import StepPosition, Task

PEAK_TFLOPS = (
    ("H100 PCIe", 756), ("H100 NVL", 835), ("H100", 989), ("H200", 989), ("H800", 989),
    ("GH200", 989), ("B200", 2250), ("A100", 312), ("A800", 312), ("A10G", 70), ("A40", 150),
    ("A10", 125), ("A30", 165), ("L40S", 362), ("L40", 181), ("L4", 121), ("T4", 65), ("V100", 125),
    ("RTX 6000 Ada", 364), ("RTX 4090", 165), ("RTX 3090", 71),
)  # fmt: skip
"""Dense bf16 or fp16 peak by words of the device's name, from the data sheets; first match."""
_GB = 1e9


class Efficiency:
    """Logs ``mfu`` and memory."""

    def __init__(
        self, task: Task, world: World, dtype: torch.dtype | None, peak_tflops: float | None
    ) -> None:
        """Copy the structure of ``task``, before it is compiled or sharded.

        Args:
            task: Model and losses.
            world: The processes.
            dtype: Autocast type of the run; ``None`` is float32.
            peak_tflops: Peak of a device; ``None``: look it up, else measure it; 0: measure it.
        """
        self.world = world
        self._structure: Task | None = copy.deepcopy(task).to("meta")
        self.peak = (peak_tflops or 0.0) * 1e12
        if peak_tflops is None:
            self.peak = known_peak(world.device, dtype)
        self.peak_source = "given or known"
        if not self.peak:
            self.peak, self.peak_source = measured_peak(world.device, dtype), "measured"
        self.flops_per_image = 0.0

    def describe(self) -> str:
        """One line for the log."""
        return f"peak of a device: {self.peak / 1e12:.4g} TFLOP/s ({self.peak_source})"

    def watch(self, batch: Batch) -> None:
        """Count the operations of the first batch."""
        if self._structure is not None and len(batch):
            flops = training_flops(self._structure, batch.to(self.world.device))
            self.flops_per_image = flops / len(batch)
            self._structure = None

    def read(self, images_per_s: float) -> dict[str, float]:
        """Values to log, for the speed of all processes; memory in GB, of this process."""
        rate = images_per_s / self.world.size
        mfu = {"mfu": rate * self.flops_per_image / self.peak} if self.flops_per_image else {}
        return {"images_per_s_per_device": rate, **mfu, **memory(self.world.device)}


def training_flops(structure: Task, batch: Batch) -> int:
    """Operations of a forward and backward pass, counted on the device ``meta``."""
    position = StepPosition(0, 0, batch.full_size)
    masks = structure.draw_masks(batch, position)  # on the batch's device
    if masks is not None:
        position = position._replace(masks=masks.to(torch.device("meta")))
    set_checkpointing = getattr(structure.model, "set_grad_checkpointing", None)
    if set_checkpointing is not None:
        set_checkpointing(enable=False)
    return count_flops(lambda: structure(batch.to("meta"), position).loss.backward())


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of ``work``, by PyTorch's counter.

    Attention runs as matrix products, because the counter does not know all fused CPU kernels.
    """
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())


def known_peak(device: torch.device, dtype: torch.dtype | None) -> float:
    """FLOP/s of a GPU of :data:`PEAK_TFLOPS`; 0 if unknown, and in float32."""
    if device.type != "cuda" or dtype is None:
        return 0.0
    name = torch.cuda.get_device_name(device)
    namesake = r"(?!.* (Laptop|Max-Q|Ti|SUPER|D)\b)"  # with other peaks
    found = (peak for part, peak in PEAK_TFLOPS if re.search(rf"\b{part}\b{namesake}", name))
    return 1e12 * next(found, 0)


def measured_peak(device: torch.device, dtype: torch.dtype | None) -> float:
    """FLOP/s of a square matrix product, the best of five."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype or torch.float32) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        begin = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - begin)
    return float(2 * size**3 / best)


def memory(device: torch.device) -> dict[str, float]:
    """Allocated, reserved and peak memory of a GPU; on CPUs the peak of the process."""
    if device.type == "cuda":
        return {
            "memory_allocated_gb": torch.cuda.memory_allocated(device) / _GB,
            "memory_reserved_gb": torch.cuda.memory_reserved(device) / _GB,
            "memory_peak_gb": torch.cuda.max_memory_allocated(device) / _GB,
        }
    return {"memory_peak_gb": peak_memory() / _GB}


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
