"""Runs in subprocesses that are killed, resumed with another world size, or get NaN losses.

The long forms: ``tools/torture_resume.py`` and ``tools/torture_failures.py``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support.scenes import write_scenes
from tools.torture.failures import FAILURES, KIND, try_failure
from tools.torture.fingerprint import digest, fingerprint, sample_order
from tools.torture.kills import chains_of, torture
from tools.torture.pairs import run_alone, try_pair
from tools.torture.small_runs import REPO, Layout, RunFactory, finish

RESUME = [str(REPO / "tools/torture_resume.py"), "child"]
FAIL = [str(REPO / "tools/torture_failures.py"), "child"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("train"), 8)


@pytest.mark.long
def test_run_survives_six_kills(scenes: Path, tmp_path: Path) -> None:
    layouts = [Layout(1, 0), Layout(2, 2)]
    chains = chains_of(layouts, kills=6, in_save=4, per_chain=3, seed=1)
    report = torture(chains, RunFactory(RESUME, scenes, steps=32), tmp_path)
    assert report["differ"] == {}
    assert (report["kills"], report["equal"]) == (6, 2)
    assert report["in_save"] >= 3


@pytest.mark.long
def test_a_second_run_in_a_folder_is_refused_and_disturbs_nothing(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KIND, raising=False)
    runs = RunFactory(FAIL, scenes, steps=20)
    alone = run_alone(runs, tmp_path / "alone")
    trial = try_pair(runs, tmp_path / "pair", 0.0, alone)
    assert trial.passed(), trial


@pytest.mark.long
def test_world_size_may_change_between_resumes(scenes: Path, tmp_path: Path) -> None:
    """At a fixed global batch: the same samples in the same order, losses within 1e-5.

    Without stochastic depth, which each process draws for itself.
    """
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    for folder, parts in ((whole, {"1x0": 12}), (moved, {"2x0": 5, "1x0": 9, "2x1": 12})):
        for layout, steps in parts.items():
            runs = RunFactory(RESUME, scenes, steps, ("--log_every", "1", "--drop_path", "0"))
            finish(runs.start(Layout.parse(layout), folder), folder)
    assert sample_order(moved) == sample_order(whole)
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (whole, moved)
    ]
    assert [row["step"] for row in logs[1]] == [row["step"] for row in logs[0]] == [*range(1, 13)]
    for a, b in zip(*logs, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


@pytest.mark.long
def test_torchrun_restarts_after_a_killed_rank(scenes: Path, tmp_path: Path) -> None:
    """``torchrun --max_restarts``: a killed rank loses the steps since the last checkpoint."""
    runs = RunFactory(RESUME, scenes, 16)
    finish(runs.start(Layout(2, 1), tmp_path / "alone"), tmp_path / "alone")
    patient = RunFactory(FAIL, scenes, 16, launcher=("--max_restarts=1",))
    trial = try_failure("killed_rank", patient, tmp_path / "killed", 0)
    assert (trial.code, trial.hanging) == (0, 0)
    ends = [{**fingerprint(tmp_path / run), "samples": ""} for run in ("alone", "killed")]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("kind", ["nonfinite", "full_disk", "killed_worker", "SIGTERM"])
def test_all_processes_exit_with_one_error(scenes: Path, tmp_path: Path, kind: str) -> None:
    trial = try_failure(kind, RunFactory(FAIL, scenes, steps=400), tmp_path / kind, 0)
    assert trial.passed(FAILURES[kind]), trial


def test_digests_of_different_states_differ() -> None:
    state = {"a": torch.ones(3), "b": [1, "x", {"c": torch.tensor(2)}]}
    again = {"b": [1, "x", {"c": torch.tensor(2)}], "a": torch.ones(3)}
    assert digest(state) == digest(again)
    for other in (torch.ones(3, dtype=torch.float64), torch.ones(1, 3), torch.tensor([1, 1, 1.01])):
        assert digest({**state, "a": other}) != digest(state)
    assert digest({**state, "b": [1, "x", {"c": torch.tensor(3)}]}) != digest(state)


STAND_IN = """#!/bin/bash
while [[ $1 != *.py ]]; do shift; done
exec {python} {child} "${{@:2}}" {options}
"""


def test_slurm_script_requeues(scenes: Path, tmp_path: Path) -> None:
    """The script of docs/RELIABILITY.md: USR1 ends the run with a checkpoint and requeues it."""
    text = (REPO / "docs/RELIABILITY.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash.*?)```", text, re.DOTALL)
    folder = tmp_path / "run"
    runs = RunFactory(RESUME, scenes, 400)
    options = runs.command(Layout(1, 0), folder)[3:]
    stand_ins = {
        "srun": STAND_IN.format(
            python=sys.executable, child=shlex.join(RESUME), options=shlex.join(options)
        ),
        "scontrol": f'#!/bin/bash\necho "$@" > {tmp_path}/requeued\n',
    }
    for name, lines in stand_ins.items():
        (tmp_path / name).write_text(lines)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_JOB_ID": "42"}
    smoke = str(REPO / "cfgs/pretrain/rooms/smoke.yaml")
    environment |= {"CONFIG": smoke, "OUTPUT_DIR": str(folder)}
    job = subprocess.Popen(["bash", str(tmp_path / "job.sh")], cwd=REPO, env=environment)
    deadline = time.monotonic() + 120
    while not (folder / "samples-0.jsonl").is_file():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 42\n"
    assert list((folder / "checkpoints").glob("checkpoint-step*.pth"))
    assert not (folder / "model.safetensors").exists()
