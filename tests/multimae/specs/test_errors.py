"""Exit codes and messages of commands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from multimae.specs.errors import UserError, run_command


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


def test_names_that_are_not_utf8_and_closed_pipes() -> None:
    code = (
        "from multimae.specs.errors import run_command\n"
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
