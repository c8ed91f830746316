"""Entry, interruption and exit of a training script: signals, errors, exit codes, dead peers."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch.distributed as dist

from multimae.specs.errors import UserError, print_error

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EXIT_CODE = 143  # 128 + SIGTERM, which job schedulers recognise
GRACE_PERIOD_S = 15.0
"""Seconds for a process of a distributed run to react to a signal before it exits."""

_acknowledged = threading.Event()


class Stopped(UserError):
    """A signal stopped the run; the message says what was saved."""

    exit_code = EXIT_CODE
    label = "stopped"
    everywhere = True


class StopRequest:
    """Records a stop signal; the loop checks it between two steps.

    Attributes:
        name: Name of the signal received, or ``None``.
    """

    def __init__(self) -> None:
        """No signal yet."""
        self.name: str | None = None
        self._interruptible = False

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch the signals inside the context; a second SIGINT ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread gets signals
            return
        before = {number: signal.signal(number, self._note) for number in STOPPING}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal raises :class:`Stopped` at once: for work that can be repeated."""
        self._interruptible = True
        try:
            if self.name is not None:
                raise Stopped(f"{self.name} received")
            yield
        finally:
            self._interruptible = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.name is not None and number == signal.SIGINT
        self.name = signal.Signals(number).name
        if again:
            os._exit(EXIT_CODE)
        if self._interruptible:
            acknowledge()
            raise Stopped(f"{self.name} received")


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """A signal inside the context raises :class:`Stopped`: before and after the training.

    Python runs handlers between bytecode instructions, so a process blocked in a collective whose
    peers have died never runs them: a thread ends it after ``GRACE_PERIOD_S``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        threading.Thread(target=_guard, args=(read_end,), daemon=True, name="signals").start()
    request = StopRequest()
    with request.listening(), request.interrupting():
        yield


def acknowledge() -> None:
    """Cancel the grace period: the process is handling the signal."""
    _acknowledged.set()


def _guard(read_end: int) -> None:
    """Exit if a stop signal is not acknowledged in time."""
    stopping = {int(number) for number in STOPPING}
    while data := os.read(read_end, 64):
        if stopping & set(data) and not _acknowledged.wait(GRACE_PERIOD_S):
            os._exit(EXIT_CODE)


def leave_to_parent(*_: Any) -> None:
    """Ignore stop signals in a loader worker: the training process ends its workers."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """Kill the loader workers before this process exits.

    They ignore SIGTERM, so Python would terminate and join them forever.
    """
    workers = [p for p in multiprocessing.active_children() if p.daemon]
    if workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(timeout=1)  # a worker blocked on a disk may not exit


def run_script(main: Callable[[], object]) -> None:
    """Run ``main`` as the last thing of a process.

    Exits with 0, with the code of a :class:`UserError`, or with 1.

    A process that fails because a peer failed prints one line, so that the cause appears once. It
    exits without cleaning up: destroying a process group with dead peers may block forever.
    """
    from multimae.specs.commands import BROKEN_PIPE, drop_broken_pipe, escape_names

    escape_names()
    code = 0
    try:
        with stopping_at_once():
            main()
        sys.stdout.flush()
    except SystemExit:  # --help
        if drop_broken_pipe():
            raise SystemExit(BROKEN_PIPE) from None
        raise
    except UserError as err:
        code = err.exit_code
        if not (err.everywhere and _rank()):
            print_error(err)
    except Exception as err:
        from utils.distributed.process_failures import is_peer_failure

        code = 1
        if isinstance(err, BrokenPipeError) and drop_broken_pipe(failed=True):
            code = BROKEN_PIPE
            print("error: the reader of the output has ended", file=sys.stderr)
        elif is_peer_failure(err):
            print(f"rank {_rank()}: ends because another process has ended", file=sys.stderr)
        else:
            traceback.print_exc()
    if code:
        end_workers()
    if code and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    # Skip the final garbage collection over all loaded modules: one to two seconds.
    gc.freeze()
    if code:
        raise SystemExit(code)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
