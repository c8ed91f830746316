"""Where a number comes from: commit and hardware, for tables of results."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def commit(changed: str) -> str:
    """Short id of the checked-out commit, with ``changed`` if files differ; or ``unknown``."""
    command = ["git", "describe", "--always", f"--dirty={changed}", "--exclude=*"]
    folder = Path(__file__).parent
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def processor() -> str:
    """Cores and name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"
