"""NaN and Inf in losses, gradients and weights: stop, skip, roll back; never in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from multimae.specs.errors import RunError
from run_pretraining_multimae import main
from tests.support.scenes import tiny_run, write_scenes
from tests.utils.training.test_stepper import one_update
from tools.torture.fingerprint import fingerprint
from utils.checkpoint.saving import Saver
from utils.config.options import CheckpointOptions
from utils.data.batches import Batch
from utils.distributed.world import World
from utils.tasks.base import StepOutput, StepPosition
from utils.tasks.pretraining import PretrainTask
from utils.training.nonfinite import MAX_ATTEMPTS, require_finite

Poison = Callable[[Callable[[int], bool]], None]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("train"), 8)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[str]]:
    """Names of the task's samples by step (from 1)."""
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


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


@pytest.fixture
def poison_gradient(monkeypatch: pytest.MonkeyPatch, seen: dict[int, list[str]]) -> Any:
    """Multiplies gradients, at the steps (from 1) that a condition names; losses are finite."""

    def plant(when: Callable[[int], bool], factor: float = float("nan")) -> None:
        forward = PretrainTask.forward

        def poisoned(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
            out = forward(self, batch, position)
            if self.training and when(position.step + 1):
                return out._replace(loss=Scaled.apply(out.loss, factor))
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
def test_skip_and_rollback_give_the_same_weights(
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    poison: Poison,
    seen: dict[int, list[str]],
    poisoned: int,
) -> None:
    """Both skip one step; the weights equal those of a run without that batch."""
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


def test_skip_ends_a_diverged_run(scenes: Path, tmp_path: Path, poison: Poison) -> None:
    poison(lambda step: step >= 3)
    with pytest.raises(RunError, match=f"{MAX_ATTEMPTS} consecutive steps up to step 12"):
        main(options(scenes, tmp_path, "skip"))


def test_rollback_limit_ends_the_run(scenes: Path, tmp_path: Path, poison: Poison) -> None:
    poison(lambda step: step >= 3)
    with pytest.raises(RunError, match=f"{MAX_ATTEMPTS} rollbacks"):
        main(options(scenes, tmp_path, "rollback"))


def test_a_stopped_run_keeps_its_profile(scenes: Path, tmp_path: Path, poison: Poison) -> None:
    poison(lambda step: step == 3)
    with pytest.raises(RunError):
        main([*options(scenes, tmp_path, "stop"), "--profile", "1:99"])
    assert (tmp_path / "profile/operators.txt").is_file()


def checkpoints(folder: Path) -> dict[str, Any]:
    files = sorted((folder / "checkpoints").glob("*.pth"))
    return {path.name: torch.load(path, weights_only=True) for path in files}


@pytest.mark.parametrize(
    ("factor", "update_freq", "more"),
    [
        ("nan", 1, ()),  # AdamW is fused, Lamb is not
        ("nan", 2, ("--opt", "lamb")),
        ("inf", 1, ("--clip_grad", "1.0")),
        ("inf", 2, ("--clip_grad", "1.0", "--opt", "lamb")),
    ],
)
def test_a_nan_gradient_stops_at_its_step_and_is_not_saved(
    scenes: Path,
    tmp_path: Path,
    poison_gradient: Any,
    seen: dict[int, list[str]],
    factor: str,
    update_freq: int,
    more: tuple[str, ...],
) -> None:
    poison_gradient(lambda step: step == 6, float(factor))
    run = options(scenes, tmp_path, "stop", "--save_ckpt_steps", "1", "--no_async_save", *more)
    with pytest.raises(RunError, match="gradient is not finite at step 6: grad_norm"):
        main([*run, "--epochs", "6", "--update_freq", str(update_freq)])
    (row,) = written(tmp_path)
    assert (row["step"], row["losses"]) == (6, ["grad_norm"])
    assert len(row["names"]) == 2 * update_freq and set(seen[6]) <= set(row["names"])
    saved = checkpoints(tmp_path)
    assert max(contents["step"] for contents in saved.values()) == 5
    for contents in saved.values():
        require_finite(contents)


def test_skip_and_rollback_of_a_nan_gradient_lose_one_update(
    scenes: Path, tmp_path: Path, poison_gradient: Any, seen: dict[int, list[str]]
) -> None:
    poison_gradient(lambda step: step == 6)
    ends = []
    for how in ("skip", "rollback"):
        main(options(scenes, tmp_path / how, how, "--save_ckpt_steps", "3"))
        (row,) = written(tmp_path / how)
        assert (row["step"], row["losses"], row["names"]) == (6, ["grad_norm"], seen[6])
        ends.append(fingerprint(tmp_path / how))
        require_finite(checkpoints(tmp_path / how)["checkpoint-4.pth"])
    assert {key for key in ends[0] if ends[0][key] != ends[1][key]} <= {"skipped", "rng"}


@pytest.mark.parametrize("how", ["skip", "rollback"])
def test_a_run_that_skips_every_batch_to_its_end_fails(
    scenes: Path, tmp_path: Path, poison_gradient: Any, how: str
) -> None:
    poison_gradient(lambda step: step >= 13)
    with pytest.raises(RunError, match="last 4 steps, from step 13: the model has diverged"):
        main(options(scenes, tmp_path, how))
    assert not (tmp_path / "model.safetensors").exists()


def test_fp16_that_overflows_at_every_scale_stops(
    scenes: Path, tmp_path: Path, poison_gradient: Any
) -> None:
    poison_gradient(lambda step: step >= 2)
    with pytest.raises(RunError, match="gradient is not finite at step"):
        main([*options(scenes, tmp_path, "stop", "--epochs", "12"), "--precision", "fp16"])


def test_a_checkpoint_with_nan_weights_is_refused(tmp_path: Path) -> None:
    saver = Saver(CheckpointOptions(output_dir=str(tmp_path)), World(0, 1, torch.device("cpu")))
    contents: dict[str, Any] = {
        "model": {"a": torch.ones(2), "b": torch.ones(2)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        "window": {"sums": torch.tensor([float("inf")])},
        "epoch": 1, "step": 4, "best": float("nan"),
    }  # fmt: skip
    state: Any = SimpleNamespace(state_dict=lambda _: contents)
    saver.save(state, at_epoch_end=True, wait=True)
    moments = contents["optimizer"]["state"][0]["exp_avg"]
    for name, tensor in (("model.b", contents["model"]["b"]), ("state.0.exp_avg", moments)):
        tensor[1], contents["step"] = float("nan"), 5
        with pytest.raises(RunError, match=f"{name} hold NaN or infinite values at step 5"):
            saver.save(state, at_epoch_end=False, wait=True)
        tensor[1] = 0.0
    assert list(checkpoints(tmp_path)) == ["checkpoint-1.pth"]


def test_rollback_needs_checkpoints(scenes: Path, poison: Poison) -> None:
    poison(lambda step: step == 3)
    with pytest.raises(RunError, match="needs --output_dir and --save_ckpt"):
        main(tiny_run(scenes, "", "--on_nonfinite", "rollback"))


def test_skipped_step_changes_no_state(scenes: Path, tmp_path: Path, poison: Poison) -> None:
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


def test_final_and_best_weights_with_nan_are_refused(tmp_path: Path) -> None:
    state, _ = one_update()
    with torch.no_grad():
        state.ema.module.weight.fill_(float("nan"))  # type: ignore[union-attr, operator]
    world = World(0, 1, torch.device("cpu"))
    with pytest.raises(RunError, match=r"model\.weight hold NaN"):
        state.scored_weights(world)
    with pytest.raises(RunError, match=r"model\.weight hold NaN"):
        Saver(CheckpointOptions(output_dir=str(tmp_path)), world).save_best(state)
    assert not checkpoints(tmp_path)
