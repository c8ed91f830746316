"""SIGTERM of commands: remove temporary files, stop the commands that were started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into ``SystemExit``, which runs ``finally`` blocks; a second one kills.

    Child processes that are commands get the signal, too: a thread may be waiting for them.
    Workers of ``multiprocessing`` finish what they write, as their pool ends them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    workers = {worker.pid for worker in multiprocessing.active_children()}
    for pid in set(_children()) - workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    raise SystemExit(EXIT_CODE)


def _children() -> Iterator[int]:
    """Processes started by any thread of this one; none where /proc does not tell."""
    with suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            yield from map(int, (task / "children").read_text().split())
