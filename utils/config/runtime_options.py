"""Options of a run's processes: duration, device, precision, compilation, parallelism."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from utils.config.fields import option

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")  # of torchrun and Open MPI


def default_device() -> str:
    """``cuda`` if available, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def available_cores() -> int:
    """CPU cores that this process may use: by affinity, container quota and Slurm."""
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    quota, period = (CPU_MAX.read_text() if CPU_MAX.is_file() else "max 1").split()
    limit = math.inf if quota == "max" else int(quota) / int(period)
    of_task = float(os.environ.get("SLURM_CPUS_PER_TASK", "inf"))
    return max(1, int(min(len(affinity(0)), limit, of_task)))


def default_num_workers() -> int:
    """Cores per process of this machine, less one for training; at least 1, at most 16."""
    sizes = (os.environ.get(name, 1) for name in LOCAL_SIZES)
    return max(1, min(16, available_cores() // max(map(int, sizes)) - 1))


def device_problems(name: str) -> Iterator[str]:
    """Check that PyTorch knows the device ``name``."""
    try:
        torch.device(name)
    except RuntimeError:
        yield f"device: '{name}' is not a device; use cuda, cuda:N, cpu or mps"


@dataclass(frozen=True)
class RuntimeOptions:
    """Run: duration, device, processes."""

    epochs: int = option(
        1600, "Passes over the training set", within="[1, inf)", on_resume="applied"
    )
    max_steps: int | None = option(
        None,
        "Stop after this many steps, with the schedule of the full run",
        within="[1, inf)",
        on_resume="applied",
    )
    schedule_to_max_steps: bool = option(
        False, "End the schedules at --max_steps instead of the last epoch"
    )
    batch_size: int = option(256, "Images per GPU and batch", within="[1, inf)", on_resume="free")
    start_epoch: int = option(0, "First epoch, counted from 0", within="[0, inf)")
    device: str = option(default_device, "cuda, cuda:N, cpu or mps", on_resume="free")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "auto", "Autocast type; auto: the best the device has", on_resume="applied"
    )
    seed: int = option(0, "Seed of every random generator", within="[0, inf)")
    deterministic: bool = option(
        False, "Use deterministic algorithms only; slower on a GPU", on_resume="applied"
    )
    on_nonfinite: Literal["stop", "skip", "rollback"] = option(
        "stop",
        "On NaN/Inf: stop; skip the update (synchronises with the device every step); rollback to "
        "the last checkpoint and skip the batch",
        on_resume="applied",
    )
    grad_checkpointing: bool | Literal["selective"] = option(
        False,
        "Recompute activations in the backward pass: least memory, most time; selective: "
        "all but matrix products and attention",
        on_resume="free",
    )
    compile: bool = option(
        False, "Compile masks, model and losses: slow start, faster steps", on_resume="free"
    )
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = option(
        "default",
        "reduce-overhead: CUDA graphs, for small models and batches; max-autotune: also search for "
        "the fastest kernels",
        on_resume="free",
    )
    attention: Literal["default", "auto", "flash", "cudnn", "efficient", "math"] = option(
        "default",
        "Attention kernel on GPUs; default: PyTorch's; auto: the fastest at the run's shapes",
        on_resume="free",
    )
    num_threads: int | None = option(
        None, "CPU threads of PyTorch; none: its default", within="[1, inf)", on_resume="free"
    )
    data_cache_gb: float | None = option(
        None, "Disk space for remote packs; none: 10 GB", within="[0, inf)", on_resume="free"
    )
    parallel: Literal["ddp", "fsdp"] = option(
        "ddp",
        "ddp: replicate the model on every process; fsdp: shard model, gradients and optimiser",
        on_resume="free",
    )
    find_unused_params: bool = option(
        True, "DDP: allow unused parameters, found in the first step", on_resume="free"
    )
    show_user_warnings: bool = option(False, "Show Python's UserWarnings", on_resume="free")
    world_size: int = option(1, "Processes; torchrun sets it", within="[1, inf)", on_resume="free")
    local_rank: int = option(
        -1, "Rank on this machine; torchrun sets it", within="[-1, inf)", on_resume="free"
    )
    dist_on_itp: bool = option(
        False, "Read the ranks from Open MPI's environment", on_resume="free"
    )
    dist_url: str = option("env://", "Address where the processes meet", on_resume="free")

    def problems(self) -> Iterator[str]:
        """Unknown devices, runs that end before they start, graphs that cannot be captured."""
        yield from device_problems(self.device)
        if (self.compile_mode, self.attention) != ("default", "default"):
            from utils.training.compilation import kernel_problems

            yield from kernel_problems(self)
        if self.start_epoch > self.epochs:
            yield f"start_epoch: {self.start_epoch} lies beyond epochs {self.epochs}"
