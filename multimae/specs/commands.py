"""Entry of commands: errors, exit codes, closed pipes, SIGTERM."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import NoReturn

from multimae.specs.errors import UserError, print_error

TERMINATED = 128 + signal.SIGTERM
BROKEN_PIPE = 128 + signal.SIGPIPE


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run the ``main`` of a command and exit with its code, see :func:`exit_code_of`."""
    sys.exit(exit_code_of(main))


def exit_code_of(main: Callable[[], int | None]) -> int:
    """Run the ``main`` of a command.

    A :class:`UserError` is printed without a traceback. Codes of a shell: 130 after Ctrl+C, 143
    after SIGTERM, 141 if the reader of the output is gone (``| head``).
    """
    escape_names()
    try:
        with exit_on_user_error(), exit_on_sigterm():
            code = main() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = BROKEN_PIPE
        drop_broken_pipe(failed=True)
    except SystemExit:
        if drop_broken_pipe():
            raise SystemExit(BROKEN_PIPE) from None
        raise
    return BROKEN_PIPE if drop_broken_pipe() else code


def drop_broken_pipe(failed: bool = False) -> bool:
    """Whether the reader of stdout is gone; then what Python would still write is dropped.

    Args:
        failed: Whether writing to some pipe has failed, and nothing may be left to write.
    """
    broken = False
    try:
        sys.stdout.flush()
        if failed:
            poll = select.poll()
            poll.register(sys.stdout.fileno(), 0)
            broken = any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        broken = True
    except (OSError, ValueError):  # not a file
        return False
    if broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return broken


def escape_names() -> None:
    r"""Let stdout print file names that are not UTF-8, as ``\udce9``; stderr does already."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print a :class:`UserError` on stderr and exit with its code."""
    try:
        yield
    except UserError as err:
        print_error(err)
        raise SystemExit(err.exit_code) from None


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
    raise SystemExit(TERMINATED)


def _children() -> Iterator[int]:
    """Processes started by any thread of this one; none where /proc does not tell."""
    with suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            yield from map(int, (task / "children").read_text().split())
