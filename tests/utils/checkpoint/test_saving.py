"""Saving: frequency, retention, failed saves, and logs that match the checkpoint."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import utils.checkpoint.saving
from multimae.specs.errors import RunError
from run_pretraining_multimae import main
from tests.support.scenes import tiny_run, write_scenes
from tools.torture.fingerprint import fingerprint
from utils.checkpoint.checkpoint_files import read_records, write_checkpoint
from utils.checkpoint.find import latest_checkpoint
from utils.checkpoint.saving import snapshot
from utils.data.batches import Batch
from utils.training.state import TrainState
from utils.training.stepper import Stepper, Update


class Struck(Exception):
    """Stops a run like a kill."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("train"), 8)


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


def rows(folder: Path) -> list[tuple[str, int]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [(row["kind"], row["step"]) for row in map(json.loads, lines)]


def strike_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """End the run in step ``number`` (from 1) without cleaning up."""
    step = Stepper.step

    def struck(self: Stepper, state: TrainState, batches: Sequence[Batch]) -> Update:
        if state.step + 1 == number:
            raise Struck
        return step(self, state, batches)

    monkeypatch.setattr(Stepper, "step", struck)


def test_saves_by_epoch_and_step_and_keeps_n(scenes: Path, tmp_path: Path) -> None:
    more = ("--epochs", "6", "--save_ckpt_freq", "1", "--save_ckpt_steps", "3", "--keep_ckpts", "2")
    main(tiny_run(scenes, tmp_path, *more, "--batch_size", "2"))
    between = {"checkpoint-step18.pth", "checkpoint-step21.pth"}
    epochs = {"checkpoint-5.pth", "checkpoint-6.pth"}
    assert names(tmp_path) == with_records(*between, *epochs)
    records = read_records(tmp_path / "checkpoints")
    assert [record.step for record in records] == [18, 20, 21, 24]
    assert all(record.matches(tmp_path / "checkpoints") for record in records)


def with_records(*checkpoints: str) -> set[str]:
    return {*checkpoints, *(f"{name}.json" for name in checkpoints)}


@pytest.mark.parametrize("epoch_first", [False, True])
def test_two_saves_at_one_step_leave_no_file_behind(tmp_path: Path, epoch_first: bool) -> None:
    for epoch in range(1, 6):
        for at_epoch_end in (epoch_first, not epoch_first):
            done = epoch if at_epoch_end or epoch_first else epoch - 1
            contents = {"step": 10 * epoch, "epoch": done}
            write_checkpoint(contents, tmp_path, at_epoch_end=at_epoch_end, keep=1)
    kept = ("checkpoint-5.pth", "checkpoint-step40.pth", "checkpoint-step50.pth")
    assert {p.name for p in tmp_path.iterdir()} == with_records(*kept)
    assert read_records(tmp_path)[-1].file == "checkpoint-5.pth"


def test_a_folder_with_a_manifest_is_read_and_upgraded(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for epoch in (1, 2):
        write_checkpoint({"step": epoch, "epoch": epoch}, folder, at_epoch_end=True)
    entries = [asdict(record) for record in read_records(folder)]
    for path in folder.glob("*.json"):
        path.unlink()
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "checkpoints": entries}))
    newest = folder / "checkpoint-2.pth"
    assert latest_checkpoint(tmp_path) == newest
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    assert latest_checkpoint(tmp_path) == folder / "checkpoint-1.pth"
    write_checkpoint({"step": 3, "epoch": 3}, folder, at_epoch_end=True)
    kept = with_records(*(f"checkpoint-{n}.pth" for n in (1, 2, 3)))
    assert {p.name for p in folder.iterdir()} == kept


def test_by_minutes(scenes: Path, tmp_path: Path) -> None:
    more = ("--epochs", "1", "--batch_size", "2", "--save_ckpt_minutes", "1e-6")
    main(tiny_run(scenes, tmp_path, *more))
    assert {"checkpoint-step2.pth", "checkpoint-step3.pth", "checkpoint-1.pth"} <= names(tmp_path)
    main(tiny_run(scenes, tmp_path / "rarely", *more[:-1], "60"))
    assert names(tmp_path / "rarely") == with_records("checkpoint-1.pth")


def test_async_save_writes_the_state_at_the_call(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has the state of its step, although it is written during later steps."""
    more = ("--epochs", "3", "--save_ckpt_steps", "2", "--max_steps", "3")
    released = threading.Event()

    def slow(contents: Mapping[str, Any], *args: Any, **options: Any) -> Path:
        if contents["step"] == 2:
            released.wait(20)
        return write_checkpoint(contents, *args, **options)

    step = Stepper.step

    def releasing(self: Stepper, state: TrainState, batches: Sequence[Batch]) -> Update:
        update = step(self, state, batches)
        if state.step + 1 == 3:
            released.set()
        return update

    main(tiny_run(scenes, tmp_path / "at once", *more, "--no_async_save"))
    with monkeypatch.context() as patched:
        patched.setattr(utils.checkpoint.saving, "write_checkpoint", slow)
        patched.setattr(Stepper, "step", releasing)
        main(tiny_run(scenes, tmp_path / "meanwhile", *more))
    assert released.is_set()
    saved = [
        torch.load(tmp_path / run / "checkpoints/checkpoint-step3.pth", weights_only=True)
        for run in ("at once", "meanwhile")
    ]
    assert all(torch.equal(v, saved[1]["model"][k]) for k, v in saved[0]["model"].items())
    early, late = (
        torch.load(tmp_path / run / "checkpoints/checkpoint-1.pth", weights_only=True)
        for run in ("at once", "meanwhile")
    )
    assert all(torch.equal(v, late["model"][k]) for k, v in early["model"].items())


def test_training_does_not_change_a_snapshot() -> None:
    state = {"a": torch.arange(4.0), "b": [torch.ones(2), {"c": torch.zeros(())}], "n": 3}
    copy = snapshot(state)
    memory = copy["a"].data_ptr()
    state["a"] += 1
    state["b"][0] += 1  # type: ignore[index]
    assert copy["a"].tolist() == [0, 1, 2, 3]
    assert copy["b"][0].tolist() == [1, 1]
    again = snapshot(state, copy)
    assert again["a"].data_ptr() == memory
    assert again["a"].tolist() == [1, 2, 3, 4]
    assert again["n"] == 3


@pytest.mark.parametrize("background", [True, False])
def test_failed_save_ends_the_run_and_keeps_older_checkpoints(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    save = torch.save

    def full(contents: Mapping[str, Any], file: Any) -> None:
        save(contents, file)
        if contents["step"] == 4:
            raise OSError(28, "No space left on device")

    more = ("--epochs", "9", "--save_ckpt_freq", "1", *([] if background else ["--no_async_save"]))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(RunError, match="could not be written to .* [(]No space left on device"):
            main(tiny_run(scenes, tmp_path, *more))
    assert names(tmp_path) == with_records("checkpoint-1.pth")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints/checkpoint-1.pth"
    main(tiny_run(scenes, tmp_path, *more))
    main(tiny_run(scenes, tmp_path / "alone", *more))
    assert fingerprint(tmp_path) == fingerprint(tmp_path / "alone")


def test_logs_have_every_row_once(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 6 after a save at 4: rows of step 5 and a torn one are there already."""
    more = ("--epochs", "4", "--save_ckpt_steps", "4", "--eval_data_path", str(scenes))
    with monkeypatch.context() as patched:
        strike_at(patched, 6)
        with pytest.raises(Struck):
            main(tiny_run(scenes, tmp_path, *more))
    assert ("train", 5) in rows(tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    main(tiny_run(scenes, tmp_path, *more))
    train = [("train", step) for step in range(1, 9)]
    scored = [("eval", step) for step in (2, 4, 6, 8)]
    assert sorted(rows(tmp_path)) == sorted([*train, *scored])
    assert [step for _, step in rows(tmp_path)] == sorted(step for _, step in rows(tmp_path))


def test_wandb_resumes_the_same_run(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []

    def init(**options: Any) -> SimpleNamespace:
        begun.append(options)
        return SimpleNamespace(log=lambda *a, **k: None, finish=lambda **k: None)

    fake = SimpleNamespace(init=init, Image=lambda image: image, Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for steps, folder in (("1", "a"), ("2", "a"), ("1", "b")):
        main(tiny_run(scenes, tmp_path / folder, "--log_wandb", "--max_steps", steps))
    first, again, other = (options["id"] for options in begun)
    assert first == again != other
    assert {options["resume"] for options in begun} == {"allow"}


def test_tensorboard_shows_every_step_once(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    more = ("--epochs", "4", "--save_ckpt_steps", "4", "--log_tensorboard")
    with monkeypatch.context() as patched:
        strike_at(patched, 6)
        with pytest.raises(Struck):
            main(tiny_run(scenes, tmp_path, *more))
    main(tiny_run(scenes, tmp_path, *more))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))


def test_deterministic_runs_are_the_same_to_the_bit(
    scenes: Path, tmp_path: Path, restore_algorithms: Callable[[], None]
) -> None:
    for name in ("a", "b"):
        main(tiny_run(scenes, tmp_path / name, "--deterministic", "--drop_path", "0.1"))
        assert torch.are_deterministic_algorithms_enabled()
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


@pytest.fixture
def restore_algorithms() -> Any:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_killed_worker_is_not_reported_as_a_full_disk(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The socket may break before the loader notices the dead worker."""

    def gone(*_: Any) -> Update:
        raise error

    monkeypatch.setattr(Stepper, "step", gone)
    with pytest.raises(RunError, match="a loader process was killed"):
        main(tiny_run(scenes, tmp_path))
