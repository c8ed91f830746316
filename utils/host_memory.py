"""Memory of the host: freed blocks stay with the process, for the next step to take."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_NEVER = -1
_KEPT = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, 64 * 2**20))
# What glibc starts with, and what its two thresholds grow to once large blocks have been freed.
_GIVEN_BACK = (
    (_MMAP_MAX, 65536),
    (_MMAP_THRESHOLD, 32 * 2**20),
    (_TRIM_THRESHOLD, 64 * 2**20),
    (_TOP_PAD, 128 * 2**10),
)


def keep_freed_memory(keep: bool = True) -> bool:
    """Have glibc keep what is freed, instead of giving it back to the system.

    A training step on the CPU allocates and frees the same large tensors each time. By default
    most of them come from the system, which clears every page when it is first written; then a
    step spends up to a tenth of its time there (docs/PERFORMANCE.md). What a process holds stays
    at its peak.

    Args:
        keep: False for what glibc does by itself in a process that has freed large tensors.

    Returns:
        Whether the C library has these settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = _KEPT if keep else _GIVEN_BACK
    return all([mallopt(name, value) == 1 for name, value in settings])
