"""User errors: one message with cause, location and remedy; exit code 2.

All of it is found before the first training step.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from multimae.specs.commands import exit_on_user_error
from run_pretraining_multimae import main
from tests.support.image_folders import save
from tests.support.scenes import tiny_run, write_scenes


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "train", 8)


def error_of(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    run: Callable[[list[str]], None] = main,
) -> str:
    """The message of a run that must end with exit code 2, without a training step."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info, exit_on_user_error():
        run(arguments)
    captured = capsys.readouterr()
    assert exit_info.value.code == 2
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err and len(captured.err.splitlines()) <= 25
    assert "step 1" not in captured.out
    return captured.err


def remove_depth(root: Path) -> None:
    shutil.rmtree(root / "depth")


def rename_one(root: Path) -> None:
    (root / "depth/a/000.png").rename(root / "depth/a/zzz.png")


def bad_label(root: Path) -> None:
    save(root / "semseg/a/000.png", np.full((40, 40), 77, np.uint8))


def truncate(root: Path) -> None:
    path = root / "rgb/b/003.jpg"
    path.write_bytes(path.read_bytes()[:200])


def shrink(root: Path) -> None:
    for kind in ("rgb", "depth", "semseg"):
        suffix = "jpg" if kind == "rgb" else "png"
        shape = (4, 4, 3) if kind == "rgb" else (4, 4)
        dtype = np.uint16 if kind == "depth" else np.uint8
        save(root / f"{kind}/a/000.{suffix}", np.zeros(shape, dtype))


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (remove_depth, ["modality 'depth'", "train/depth"]),
        (rename_one, ["depth", "a/000", "zzz"]),
        (bad_label, ["semseg/a/000.png", "77", "num_classes", "0..4"]),
        (truncate, ["rgb/b/003.jpg"]),
        (shrink, ["a/000", "4", "patch"]),
        (empty, ["train", "no folders"]),
    ],
)
def test_invalid_data_is_an_error(
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    told: list[str],
) -> None:
    spoil(scenes)
    message = error_of(tiny_run(scenes, tmp_path / "out"), capsys)
    for text in told:
        assert text in message


def test_bad_label_in_a_worker_during_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the check before training did not sample still ends the run cleanly."""
    scenes = write_scenes(tmp_path / "train", 8)
    bad_label(scenes)
    monkeypatch.setattr("utils.tasks.loaders.CHECKED_SAMPLES", 0)
    message = error_of(tiny_run(scenes, tmp_path / "out", "--num_workers", "2"), capsys)
    assert message.startswith("error: ") and "semseg/a/000.png" in message and "77" in message


def test_flags_and_keys_are_all_reported_at_once(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "typo.yaml"
    config.write_text("epocs: 3\nbatch_size: many\n")
    arguments = [*tiny_run(scenes, tmp_path / "out"), "--config", str(config), "--decoder_dpth=2"]
    arguments = [a for a in arguments if a not in ("--batch_size", "4")]
    message = error_of(arguments, capsys)
    assert "did you mean epochs?" in message
    assert "decoder_depth" in message and "many" in message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--input_size", "33"], ["input_size", "33", "8", "32 or 40"]),
        (["--num_encoded_tokens", "49"], ["num_encoded_tokens = 49", "1..48"]),
        (["--batch_size", "9"], ["8 samples", "--batch_size"]),
        (["--data_path", ""], ["data path is empty"]),
        (["--data_path", "/nowhere"], ["/nowhere", "does not exist"]),
        (["--resume", "nowhere.pth"], ["nowhere.pth"]),
        (["--device", "cuda"], ["no GPU", "--device cpu"]),
    ],
)
def test_invalid_options_are_errors(
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    told: list[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = error_of(tiny_run(scenes, tmp_path / "out", *arguments), capsys)
    for text in told:
        assert text in message


def test_output_dir_that_cannot_be_written(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    message = error_of(tiny_run(scenes, tmp_path / "file" / "out"), capsys)
    assert "output_dir" in message and "file/out" in message and "--output_dir" in message


def test_output_dir_among_the_images(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = scenes / "rgb/runs/first"
    message = error_of(tiny_run(scenes, out), capsys)
    assert str(out) in message and f"{scenes / 'rgb'}, " in message


def test_checkpoint_of_another_architecture(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(tiny_run(scenes, tmp_path / "a", "--epochs", "1"))
    checkpoint = str(tmp_path / "a/checkpoints/checkpoint-1.pth")
    other = tiny_run(scenes, tmp_path / "b", "--resume", checkpoint, "--in_domains", "rgb-depth")
    message = error_of(other, capsys)
    assert checkpoint in message and "semseg" in message
    weights = tiny_run(scenes, tmp_path / "c", "--resume", str(tmp_path / "weights.pth"))
    state = torch.load(checkpoint, weights_only=True)
    torch.save({"model": state["model"]}, tmp_path / "weights.pth")
    assert "cannot be resumed" in error_of(weights, capsys)
