"""Resuming a checkpoint of the published code is an error that says what the file is."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

import run_finetuning_depth
import run_pretraining_multimae
from tests.support.image_folders import message_of
from tests.support.scenes import tiny_run, write_scenes
from tests.utils.tasks.test_finetuning_depth import arguments as depth_run


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data and a pre-training checkpoint in the published layout."""
    root = tmp_path_factory.mktemp("published")
    write_scenes(root / "train", 4)
    write_scenes(root / "val", 2, 50)
    run_pretraining_multimae.main(
        tiny_run(root / "train", root / "run", "--max_steps", "1", "--num_pictures", "0")
    )
    (path,) = (root / "run/checkpoints").glob("checkpoint-*.pth")
    ours = torch.load(path, weights_only=True)
    args = argparse.Namespace(decoder_num_heads=4, standardize_depth=True)
    theirs = {key: ours[key] for key in ("model", "optimizer", "scaler")}
    torch.save({**theirs, "epoch": 1599, "args": args}, root / "checkpoint-1599.pth")
    return root


def test_resuming_a_published_file_is_an_error_with_a_remedy(
    published: Path, tmp_path: Path
) -> None:
    file = published / "checkpoint-1599.pth"
    argv = tiny_run(published / "train", tmp_path, "--resume", str(file))
    message = message_of(run_pretraining_multimae.main, argv)
    assert "published code" in message and "1599" in message
    assert f"--init_weights {file}" in message and f"--finetune {file}" in message


def test_an_old_output_folder_is_not_started_afresh(published: Path, tmp_path: Path) -> None:
    source = published / "checkpoint-1599.pth"
    (tmp_path / "checkpoint-200.pth").write_bytes(source.read_bytes())
    (tmp_path / "checkpoint-1599.pth").write_bytes(source.read_bytes())
    for main, argv in (
        (run_pretraining_multimae.main, tiny_run(published / "train", tmp_path)),
        (run_finetuning_depth.main, depth_run(published, tmp_path)),
    ):
        message = message_of(main, argv)
        assert "2 checkpoints" in message and "checkpoint-1599.pth" in message
        assert "--no_auto_resume" in message
    assert not (tmp_path / "config.yaml").exists()


def test_fine_tuning_starts_from_a_published_file(published: Path, tmp_path: Path) -> None:
    file = published / "checkpoint-1599.pth"
    more = ("--finetune", str(file), "--max_steps", "1", "--num_pictures", "0")
    run_finetuning_depth.main(depth_run(published, tmp_path, *more))
    assert (tmp_path / "weights.txt").read_text().startswith("loaded")
