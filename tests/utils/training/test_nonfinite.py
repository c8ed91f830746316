"""Losses that are not finite: the run stops, leaves the step out, or goes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from run_pretraining_multimae import main
from tests.support.scenes import tiny_run, write_scenes
from tools.torture.fingerprint import fingerprint
from utils.data.batches import Batch
from utils.logs.errors import RunError
from utils.tasks.base import StepOutput, StepPosition
from utils.tasks.pretraining import PretrainTask
from utils.training.nonfinite import MAX_ATTEMPTS

Poison = Callable[[Callable[[int], bool]], None]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("train"), 8)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[str]]:
    """Names of the samples that the task got, by step (from 1)."""
    names: dict[int, list[str]] = {}
    forward = PretrainTask.forward

    def noting(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
        names.setdefault(position.step + 1, list(batch.names))
        return forward(self, batch, position)

    monkeypatch.setattr(PretrainTask, "forward", noting)
    return names


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch, seen: dict[int, list[str]]) -> Poison:
    """Makes the loss NaN at the steps (from 1) that a condition names."""

    def plant(when: Callable[[int], bool]) -> None:
        forward = PretrainTask.forward

        def poisoned(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
            out = forward(self, batch, position)
            if self.training and when(position.step + 1):
                return out._replace(loss=out.loss * float("nan"))
            return out

        monkeypatch.setattr(PretrainTask, "forward", poisoned)

    return plant


def options(scenes: Path, folder: Path, how: str, *more: str) -> list[str]:
    return tiny_run(
        scenes, folder, "--on_nonfinite", how, "--epochs", "4", "--batch_size", "2",
        "--save_ckpt_freq", "1", *more,
    )  # fmt: skip


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]


def test_stop_names_the_step_and_its_files(
    scenes: Path, tmp_path: Path, poison: Poison, seen: dict[int, list[str]]
) -> None:
    poison(lambda step: step == 6)
    with pytest.raises(RunError, match="not finite at step 6: loss") as raised:
        main(options(scenes, tmp_path, "stop"))
    assert f"The images of the step are in {tmp_path / 'nonfinite.jsonl'}" in str(raised.value)
    assert written(tmp_path) == [{"step": 6, "losses": ["loss"], "names": seen[6]}]
    assert len(set(seen[6])) == 2
    assert [p.name for p in (tmp_path / "checkpoints").glob("*.pth")] == ["checkpoint-1.pth"]


@pytest.mark.parametrize("poisoned", [1, 6, 8, 16])
def test_skip_and_rollback_do_the_same_to_the_weights(
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    poison: Poison,
    seen: dict[int, list[str]],
    poisoned: int,
) -> None:
    """Both lose one update; the weights after it are what they would be without that batch."""
    poison(lambda step: step == poisoned)
    ends = []
    for how in ("skip", "rollback"):
        folder = tmp_path / how
        main(options(scenes, folder, how, "--task_balancer", "uncertainty"))
        (row,) = written(folder)
        assert (row["step"], row["names"]) == (poisoned, seen[poisoned])
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        steps = [row["step"] for row in rows if row["kind"] == "train"]
        assert steps == [step for step in range(1, 17) if step != poisoned]
        ends.append(fingerprint(folder))
    differ = {key for key in ends[0] if ends[0][key] != ends[1][key]}
    assert differ <= {"skipped", "rng"}  # each step seeds; the last one is not made again


def test_skip_says_that_a_model_has_diverged(scenes: Path, tmp_path: Path, poison: Poison) -> None:
    poison(lambda step: step >= 3)
    with pytest.raises(RunError, match=f"{MAX_ATTEMPTS} consecutive steps up to step 12"):
        main(options(scenes, tmp_path, "skip"))


def test_rollback_gives_up(scenes: Path, tmp_path: Path, poison: Poison) -> None:
    poison(lambda step: step >= 3)
    with pytest.raises(RunError, match=f"{MAX_ATTEMPTS} rollbacks"):
        main(options(scenes, tmp_path, "rollback"))


def test_rollback_needs_checkpoints(scenes: Path, poison: Poison) -> None:
    poison(lambda step: step == 3)
    with pytest.raises(RunError, match="needs --output_dir and --save_ckpt"):
        main(tiny_run(scenes, "", "--on_nonfinite", "rollback"))


def test_a_step_left_out_touches_nothing(scenes: Path, tmp_path: Path, poison: Poison) -> None:
    """Only the last step: the weights are those of a run that ends before it."""
    poison(lambda step: step == 7)
    main(options(scenes, tmp_path / "left out", "skip", "--max_steps", "7"))
    main(options(scenes, tmp_path / "before", "skip", "--max_steps", "6"))
    ends = [
        torch.load(tmp_path / run / f"checkpoints/{name}", weights_only=True)
        for run, name in (("left out", "checkpoint-step7.pth"), ("before", "checkpoint-step6.pth"))
    ]
    for part in ("model", "task"):
        for key, value in ends[0][part].items():
            assert torch.equal(value, ends[1][part][key]), key
