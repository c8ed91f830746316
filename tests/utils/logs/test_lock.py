"""Lock of the output folder: respected for live owners, replaced for dead ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import utils.logs.lock
from multimae.specs.errors import UserError
from tests.support.scenes import tiny_run, write_scenes
from tools.torture.fingerprint import fingerprint
from utils.logs.lock import RunLock

REPO = Path(__file__).parents[3]
HOLD = """
import sys, time
from pathlib import Path
from utils.logs.lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.logs.lock, "BEAT_S", 0.05)
    monkeypatch.setattr(utils.logs.lock, "STALE_S", 0.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.lock"


def owner_of(path: Path, **changes: Any) -> None:
    """Write the lock of a process like this one but for ``changes``."""
    lock = RunLock(path)
    lock.acquire()
    owner = json.loads(path.read_text())
    lock.release()
    path.write_text(json.dumps({**owner, **changes}))


def acquire_and_release(path: Path) -> float:
    """Seconds until the lock was acquired."""
    lock, begin = RunLock(path), time.monotonic()
    lock.acquire()
    seconds = time.monotonic() - begin
    lock.release()
    return seconds


def test_second_run_is_refused_until_release(path: Path) -> None:
    first, second = RunLock(path), RunLock(path)
    first.acquire()
    with pytest.raises(UserError) as info:
        second.acquire()
    assert "\n" not in str(info.value) and info.value.exit_code == 2
    assert all(fact in str(info.value) for fact in (str(path.parent), str(os.getpid())))
    second.release()
    assert path.is_file()
    first.release()
    assert not path.exists()
    second.acquire()
    second.release()


def test_a_lock_whose_process_was_killed_is_stale_at_once(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=REPO, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=str(process.pid)):
        RunLock(path).acquire()
    process.send_signal(signal.SIGKILL)
    time.sleep(0.2)  # a zombie: nobody has waited for it yet
    assert acquire_and_release(path) < 0.4
    process.wait()


def test_a_reused_pid_is_not_the_owner(path: Path) -> None:
    owner_of(path, started="1")
    acquire_and_release(path)


@pytest.mark.parametrize("elsewhere", [{"boot": "before"}, {"host": "node7"}, {"namespace": "x"}])
def test_without_heartbeat_the_lock_of_another_machine_is_stale(
    path: Path, elsewhere: dict[str, str]
) -> None:
    owner_of(path, **elsewhere)
    assert acquire_and_release(path) > 0.4  # it was watched for a heartbeat
    owner_of(path, **elsewhere)
    os.utime(path, (1, 1))
    assert acquire_and_release(path) < 0.4


@pytest.mark.parametrize("elsewhere", [{"boot": "before"}, {"host": "node7"}, {"namespace": "x"}])
def test_with_heartbeat_it_is_respected(path: Path, elsewhere: dict[str, str]) -> None:
    first = RunLock(path)
    first._mine |= elsewhere
    first.acquire()
    with pytest.raises(UserError):
        RunLock(path).acquire()
    first.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\0\0\0"])
def test_a_damaged_lock_is_stale(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    acquire_and_release(path)
    assert not path.exists()


def test_one_of_two_runs_acquires_a_stale_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both read the old owner before either writes."""
    owner_of(path, pid=2**22 + 1)
    is_alive = utils.logs.lock._is_alive

    def slowly(owner: dict[str, Any]) -> bool | None:
        time.sleep(0.2)
        return is_alive(owner)

    monkeypatch.setattr(utils.logs.lock, "_is_alive", slowly)
    locks, refused = [RunLock(path), RunLock(path)], []

    def acquire(lock: RunLock) -> None:
        try:
            lock.acquire()
        except UserError:
            refused.append(lock)

    threads = [threading.Thread(target=acquire, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lock in locks:
        lock.release()
    assert len(refused) == 1


RUN = """
import sys
from multimae.specs.registry import SIZES
SIZES["nano"] = {"dim_tokens": 64, "depth": 2, "num_heads": 4}
from run_pretraining_multimae import main
from utils.distributed.script import run_script
run_script(lambda: main(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.parametrize("together", [True, False])
def test_two_runs_in_one_folder(tmp_path: Path, together: bool) -> None:
    """One is refused; the other equals a run alone."""
    scenes = write_scenes(tmp_path / "data", 4)
    more = ("--epochs", "120", "--save_ckpt_freq", "40", "--num_threads", "1")

    def start(folder: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RUN, *tiny_run(scenes, tmp_path / folder, *more)]
        return subprocess.Popen(
            command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    first = start("out")
    if not together:
        while not (tmp_path / "out/run.lock").exists() and first.poll() is None:
            time.sleep(0.05)
    second = start("out")
    ended = [(p.communicate(timeout=300)[1], p.returncode) for p in (first, second)]
    assert sorted(code for _, code in ended) == [0, 2]
    (refusal,) = (said for said, code in ended if code == 2)
    assert refusal.count("\n") == 1 and str(tmp_path / "out") in refusal
    alone = start("alone")
    alone.communicate(timeout=300)
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "alone")
    assert not (tmp_path / "out/run.lock").exists()
