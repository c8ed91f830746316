"""What this machine has: cores, memory, disk."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
# Of the memory that is free: the rest is for what was not measured (evaluation, fragments).
_USABLE = 0.9


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_limit(device: torch.device) -> int | None:
    """Bytes that a run may take on ``device``; ``None`` if nothing tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(_USABLE * (free + torch.cuda.memory_reserved(device)))
    bounds = [bound for bound in (_available(), _container()) if bound is not None]
    return int(_USABLE * min(bounds)) if bounds else None


def memory_used(device: torch.device) -> int:
    """Most bytes taken so far: by tensors on a GPU, else by the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def disk_free(folder: str) -> int:
    """Free bytes where ``folder`` is, or would be made."""
    path = Path(folder or ".").absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def describe(device: torch.device) -> str:
    """The machine in a few words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    limit = memory_limit(device)
    memory = f", {size(limit)} of memory usable" if limit else ""
    return f"{name}, {cores()} cores{memory}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _available() -> int | None:
    """Memory that is free or that this process has already."""
    if not _MEMINFO.exists():
        return None
    rows = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (int(rows["MemAvailable"].split()[0]) + own) * 1024


def _container() -> int | None:
    """Limit of the container, if it has one."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = _CGROUP / name
        text = path.read_text().strip() if path.exists() else ""
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None
