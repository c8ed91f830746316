"""Signals: save a checkpoint, exit with code 143, resume with identical results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from run_pretraining_multimae import main
from tests.support.scenes import tiny_run, write_scenes
from tools.torture.fingerprint import fingerprint
from utils.data.batches import Batch
from utils.distributed.script import EXIT_CODE, Stopped, run_script
from utils.tasks.reconstruction import ReconstructionEvaluator
from utils.training.state import TrainState
from utils.training.stepper import Stepper, Update

REPO = Path(__file__).parents[3]
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("train"), 8)


@pytest.fixture(scope="module")
def alone(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("alone")
    main(options(scenes, folder))
    return fingerprint(folder)


def options(scenes: Path, folder: Path) -> list[str]:
    return tiny_run(scenes, folder, "--epochs", "3", "--eval_data_path", str(scenes))


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_saves_and_the_run_resumes(
    scenes: Path,
    alone: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    step = Stepper.step

    def struck(self: Stepper, state: TrainState, batches: Sequence[Batch]) -> Update:
        if state.step == 2:
            os.kill(os.getpid(), number)
        return step(self, state, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "step", struck)
        with pytest.raises(SystemExit) as exit_info:
            run_script(lambda: main(options(scenes, tmp_path)))
    assert exit_info.value.code == EXIT_CODE == 143
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("stopped: ")
    assert all(fact in said for fact in (number.name, "step 3", str(tmp_path / "checkpoints")))
    saved = sorted(p.name for p in (tmp_path / "checkpoints").glob("*.pth"))
    assert saved == ["checkpoint-best.pth", "checkpoint-step3.pth"]
    assert signal.getsignal(number) == before
    main(options(scenes, tmp_path))
    assert fingerprint(tmp_path) == alone


def test_a_signal_during_the_evaluation(
    scenes: Path, alone: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation is interrupted and repeated; the weights before it are saved."""

    def struck(*_: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        raise AssertionError("the evaluation was not interrupted")

    with monkeypatch.context() as patched:
        patched.setattr(ReconstructionEvaluator, "run", struck)
        with pytest.raises(Stopped, match="SIGTERM after step 2"):
            main(options(scenes, tmp_path))
    main(options(scenes, tmp_path))
    assert fingerprint(tmp_path) == alone


def test_second_sigint_exits_at_once() -> None:
    code = """
import time
from utils.distributed.script import StopRequest
with StopRequest().listening():
    print("ready", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.01)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == EXIT_CODE
    process.stdout.close()


def test_signal_without_output_dir_reports_no_save(
    scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Stepper.step

    def terminated(self: Stepper, state: TrainState, batches: Sequence[Batch]) -> Update:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, state, batches)

    monkeypatch.setattr(Stepper, "step", terminated)
    with pytest.raises(Stopped, match="SIGTERM after step 1; nothing was saved"):
        main(tiny_run(scenes, ""))
