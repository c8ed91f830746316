"""One run per output folder: ``run.lock`` names the process that writes there."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from multimae.specs.errors import UserError

BEAT_S = 10.0
"""Seconds between heartbeats: the owner updates the file's modification time."""
STALE_S = 60.0
"""Seconds without a heartbeat after which a lock of another machine is stale."""

Owner = dict[str, Any]


class RunLock:
    """Exclusive use of an output folder.

    On the machine of the owner, its process tells whether the lock is stale (pid, start time, boot
    and pid namespace, so that reused pids, reboots and containers are recognised). Elsewhere, and
    after a reboot, the heartbeat does.
    """

    def __init__(self, path: Path) -> None:
        """Use the file ``path``."""
        self.path = path
        self._mine: Owner = {**_this_process(), "id": uuid4().hex}
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock, or a stale one, and start the heartbeat.

        Waits up to ``STALE_S`` for a heartbeat where nothing else tells whether the owner lives.

        Raises:
            UserError: Another run uses the folder.
        """
        last_beat: int | None = None
        begin = time.monotonic()
        while True:
            with _exclusive(self.path) as file:
                owner, beat = _read(file), os.fstat(file).st_mtime_ns
                alive = _is_alive(owner) if owner else False
                if alive is None and last_beat not in (None, beat):
                    alive = True
                elif alive is None and max(self._age(beat), time.monotonic() - begin) > STALE_S:
                    alive = False
                if alive is False:
                    os.ftruncate(file, 0)
                    os.pwrite(file, json.dumps(self._mine).encode(), 0)
                    break
            if alive and owner:
                raise UserError(_in_use(self.path.parent, owner))
            last_beat = beat
            time.sleep(min(1.0, BEAT_S))
        threading.Thread(target=self._beat, daemon=True, name="run-lock").start()

    def release(self) -> None:
        """Delete the file, if it is still this run's."""
        self._released.set()
        # If the folder was removed or has become read-only, the lock is stale anyway.
        with suppress(OSError), _exclusive(self.path) as file:
            owner = _read(file)
            if owner is None or owner.get("id") == self._mine["id"]:
                self.path.unlink()

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            try:
                owner = json.loads(self.path.read_text("utf-8"))
                os.utime(self.path)
            except (OSError, ValueError):
                continue  # removed, or a network file system that does not answer
            if owner.get("id") != self._mine["id"] and not self._released.is_set():
                print(f"error: {_in_use(self.path.parent, owner)}", file=sys.stderr, flush=True)
                os._exit(UserError.exit_code)

    def _age(self, beat: int) -> float:
        """Seconds since a heartbeat, by the clock of the file system."""
        probe = self.path.with_name(f".{self.path.name}-{self._mine['id']}")
        try:
            probe.touch()
            now = probe.stat().st_mtime_ns
        finally:
            probe.unlink(missing_ok=True)
        return (now - beat) / 1e9


@contextmanager
def _exclusive(path: Path) -> Iterator[int]:
    """Open (or create) the lock file while no other process of :class:`RunLock` does."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with suppress(OSError):  # unsupported by some file systems: the heartbeat protects
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                yield file
                return
        finally:
            os.close(file)


def _read(file: int) -> Owner | None:
    """The owner in a lock file; ``None`` if it is empty or damaged."""
    try:
        owner = json.loads(os.pread(file, 1 << 16, 0))
    except ValueError:
        return None
    return owner if isinstance(owner, dict) else None


def _this_process() -> Owner:
    return {
        "host": socket.gethostname(),
        "boot": _proc("sys/kernel/random/boot_id").strip(),
        "namespace": os.path.basename(os.path.realpath("/proc/self/ns/pid")),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _is_alive(owner: Owner) -> bool | None:
    """Whether the owner's process runs; ``None`` if that cannot be told from here."""
    here = _this_process()
    if any(owner.get(key) != here[key] for key in ("host", "boot", "namespace")):
        return None
    try:
        started = _start_time(int(owner["pid"]))
    except (KeyError, TypeError, ValueError):
        return None
    if here["started"] is None:  # no /proc
        return None
    return started is not None and started == owner.get("started")


def _start_time(pid: int) -> str | None:
    """Start of a process in clock ticks since boot; ``None`` if it has ended."""
    fields = _proc(f"{pid}/stat").rpartition(")")[2].split()
    return fields[19] if fields and fields[0] not in "ZX" else None


def _proc(name: str) -> str:
    """Text of a file in ``/proc``; empty where there is none."""
    try:
        return Path("/proc", name).read_text()
    except OSError:
        return ""


def _in_use(folder: Path, owner: Owner) -> str:
    return (
        f"output_dir {folder} is in use by another run (host {owner.get('host')}, process "
        f"{owner.get('pid')}, since {owner.get('since')}): wait for its end, stop it, or choose "
        "another --output_dir."
    )
