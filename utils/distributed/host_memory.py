"""Memory of the host: freed blocks stay with the process, for the next step to take."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER, _PAD = -1, 64 * 2**20


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, instead of giving it back to the system.

    A training step on the CPU allocates and frees the same large tensors each time. By default
    most of them come from the system, which clears every page when it is first written; then a
    step spends up to a tenth of its time there (docs/PERFORMANCE.md). What a process holds stays
    at its peak.

    Returns:
        Whether the C library has these settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD))
    return all([mallopt(name, value) == 1 for name, value in settings])
