"""Exit codes and messages of commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multimae.specs.commands import run_command
from multimae.specs.errors import UserError


def exit_code(main: object, capfd: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as caught:
        run_command(main)  # type: ignore[arg-type]
    return caught.value.code, *capfd.readouterr()


def test_a_user_error_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise UserError("no such folder: a")

    assert exit_code(main, capfd) == (2, "", "error: no such folder: a\n")
    assert exit_code(lambda: 1, capfd)[0] == 1
    assert exit_code(lambda: None, capfd)[0] == 0


def test_ctrl_c_has_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise KeyboardInterrupt

    assert exit_code(main, capfd) == (130, "", "interrupted\n")


def test_sigterm_runs_finally_blocks_and_stops_commands(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, threading, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from multimae.specs.commands import run_command\n"
        "def main():\n"
        "    try:\n"
        "        sleep = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "        with ThreadPoolExecutor(1) as pool:\n"
        "            future = pool.submit(subprocess.run, sleep)\n"
        "            print('started', flush=True)\n"
        "            future.result()\n"
        "    finally:\n"
        "        Path(sys.argv[1]).touch()\n"
        "run_command(main)"
    )
    done = tmp_path / "done"
    process = subprocess.Popen([sys.executable, "-c", code, done], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"started\n"
    time.sleep(0.3)
    process.terminate()
    assert process.wait(20) == 143 and done.is_file()
    process.stdout.close()


def test_sigterm_is_handled_during_the_command_only(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def main() -> None:
        signal.raise_signal(signal.SIGTERM)

    assert exit_code(main, capfd) == (143, "", "")
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("kind", ["command", "script"])
def test_a_closed_pipe_ends_a_command_and_a_script_in_a_line(kind: str) -> None:
    start = {
        "command": "from multimae.specs.commands import run_command as start",
        "script": "from utils.distributed.script import run_script as start",
    }
    code = f"{start[kind]}\nstart(lambda: [print('x' * 99) for _ in range(100_000)] and None)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait() == 141
    assert len(error.splitlines()) == (kind == "script") and "Traceback" not in error
    process.stderr.close()


def test_names_that_are_not_utf8_and_closed_pipes() -> None:
    code = (
        "from multimae.specs.commands import run_command\n"
        "run_command(lambda: [print('caf\\udce9', flush=True) for _ in range(100_000)] and 0)"
    )
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"caf\\udce9\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
