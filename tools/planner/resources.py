"""Resources: cores and memory of this machine, disk space of a run."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch

from multimae.nn.tokens import as_size
from tools.planner.planned_run import PlannedRun
from utils.checkpoint.checkpoint_files import MAX_STEP_CHECKPOINTS
from utils.config.options import CheckpointOptions
from utils.config.runtime_options import available_cores
from utils.logs.efficiency import peak_memory
from utils.training.schedule import RunPlan

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
# Fraction of free memory to use; the rest covers evaluation and fragmentation.
_USABLE = 0.9


def memory_limit(device: torch.device) -> int | None:
    """Return the bytes available to a run on ``device``; ``None`` if unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(_USABLE * (free + torch.cuda.memory_reserved(device)))
    bounds = [bound for bound in (_available(), _container_limit()) if bound is not None]
    return int(_USABLE * min(bounds)) if bounds else None


def memory_used(device: torch.device) -> int:
    """Return peak bytes so far: of tensors on a GPU, else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return peak_memory()


def disk_free(folder: str) -> int:
    """Return the free bytes on the disk of ``folder``, which need not exist."""
    path = Path(folder or ".").absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def describe(device: torch.device) -> str:
    """Describe device, cores and memory."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    limit = memory_limit(device)
    memory = f", {size(limit)} of memory usable" if limit else ""
    return f"{name}, {available_cores()} cores{memory}"


def size(count: float) -> str:
    """Format bytes."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _available() -> int | None:
    """Return free memory plus that of this process."""
    if not _MEMINFO.exists():
        return None
    info = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    return int(info["MemAvailable"].split()[0]) * 1024 + peak_memory()


def _container_limit() -> int | None:
    """Return the container's memory limit, if any."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = _CGROUP / name
        text = path.read_text().strip() if path.exists() else ""
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None


# Input, masked input, prediction and truth of every modality, in colour and before compression.
_PANELS, _CHANNELS = 4, 3


@dataclass(frozen=True)
class DiskUse:
    """Bytes of a run's output folder.

    Attributes:
        checkpoint: One checkpoint, measured.
        checkpoints: Number of checkpoints kept.
        deletes: Whether old ones are deleted after the next is written.
        weights: Final weights and those of the best evaluation.
        pictures: Upper bound over all evaluations.
        free: Free bytes on the disk.
    """

    checkpoint: int
    checkpoints: int
    deletes: bool
    weights: int
    pictures: int
    free: int

    @property
    def total(self) -> int:
        """Total bytes."""
        being_written = self.checkpoint * self.deletes
        return self.checkpoint * self.checkpoints + being_written + self.weights + self.pictures


def disk_use(run: PlannedRun, plan: RunPlan) -> DiskUse:
    """Estimate the run's disk use; its optimizer must have stepped once."""
    cfg = run.cfg
    folder = cfg.checkpoint.output_dir
    saves = bool(folder) and cfg.checkpoint.save_ckpt
    weights = _saved_size(run.state.scored_model.state_dict())
    copies = bool(folder) + (saves and bool(cfg.data.eval_data_path))
    return DiskUse(
        checkpoint=_saved_size(run.state.state_dict(run.world)),
        checkpoints=kept_checkpoints(run, plan) if saves else 0,
        deletes=saves and _deletes(cfg.checkpoint),
        weights=copies * weights,
        pictures=_pictures(run, plan) if folder else 0,
        free=disk_free(folder),
    )


def kept_checkpoints(run: PlannedRun, plan: RunPlan) -> int:
    """Count the checkpoints left at the end: epoch checkpoints and step checkpoints."""
    options, total, per_epoch = run.cfg.checkpoint, plan.total_steps, plan.steps_per_epoch
    every = options.save_ckpt_steps
    cut = total % per_epoch > 0  # by max_steps: the last one is not after an epoch
    due = [
        epoch % options.save_ckpt_freq == 0
        or epoch * per_epoch == total
        or (every is not None and epoch * per_epoch % every == 0)
        for epoch in range(1, total // per_epoch + 1)
    ]
    between = int(cut)
    if every is not None:
        between += total // every - total // math.lcm(every, per_epoch)
        between -= cut and total % every == 0
    if options.save_ckpt_minutes is not None:
        between = MAX_STEP_CHECKPOINTS
    after = min(sum(due), options.keep_ckpts or sum(due))
    return after + min(between, MAX_STEP_CHECKPOINTS)


def _deletes(options: CheckpointOptions) -> bool:
    """Return whether old checkpoints are deleted."""
    return bool(options.keep_ckpts or options.save_ckpt_steps or options.save_ckpt_minutes)


def _pictures(run: PlannedRun, plan: RunPlan) -> int:
    cfg = run.cfg
    if not cfg.data.eval_data_path:
        return 0
    drawn = -(-plan.total_steps // plan.steps_per_epoch // cfg.log.picture_freq)
    num_modalities = len(run.train_set.folder.modalities)
    panel = math.prod(as_size(cfg.model.input_size)) * _CHANNELS
    return drawn * cfg.log.num_pictures * num_modalities * _PANELS * panel


class _Counter:
    """File-like object that only counts bytes."""

    def __init__(self) -> None:
        self.length = 0

    def write(self, data: bytes) -> int:
        self.length += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing; part of the file interface."""


def _saved_size(contents: object) -> int:
    counter = _Counter()
    torch.save(contents, cast(IO[bytes], counter))
    return counter.length
