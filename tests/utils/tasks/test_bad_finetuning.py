"""User errors in fine-tuning: one message, exit code 2, before the first step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import run_finetuning_cls
import run_finetuning_depth
import run_finetuning_semseg
import run_finetuning_taskonomy
from tests.support.image_folders import save
from tests.support.scenes import ON_CPU, write_scenes
from tests.utils.tasks.test_bad_input import error_of
from tests.utils.tasks.test_finetuning_taskonomy import write_taskonomy

MAINS: dict[str, Callable[[list[str]], None]] = {
    "cls": run_finetuning_cls.main,
    "semseg": run_finetuning_semseg.main,
    "depth": run_finetuning_depth.main,
    "taskonomy": run_finetuning_taskonomy.main,
}
OWN = {
    "cls": ["--nb_classes", "2"],
    "semseg": ["--num_classes", "4", "--seg_reduce_zero_label", "--decoder_dim", "64"],
    "depth": [],
    "taskonomy": ["--out_domains", "normal"],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Scenes for training and evaluation, and Taskonomy views."""
    write_scenes(tmp_path / "val", 4, first_seed=100)
    write_taskonomy(tmp_path / "views", buildings=5, views=2)
    return write_scenes(tmp_path / "train", 8)


def failure(
    name: str, data: Path, capsys: pytest.CaptureFixture[str], *more: str, output_dir: str = ""
) -> str:
    root = data.parent
    where = ["--data_path", str(root / "views")]
    if name != "taskonomy":
        where = ["--data_path", str(data), "--eval_data_path", str(root / "val")]
    arguments = [
        *where, *OWN[name], "--output_dir", output_dir,
        *("--model", "multivit_nano", "--input_size", "32", "--patch_size", "8"),
        *("--batch_size", "4", "--epochs", "2", "--warmup_epochs", "0", "--num_workers", "0"),
        *(*ON_CPU, "--log_every", "1", *more),
    ]  # fmt: skip
    return error_of(arguments, capsys, MAINS[name])


@pytest.mark.parametrize("name", MAINS)
def test_every_script_checks_its_paths_and_weights_first(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "nowhere")
    for flag in ("--data_path", "--eval_data_path", "--test_data_path"):
        assert nowhere in failure(name, data, capsys, flag, nowhere)
    torch.save({"model": {"stem.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    message = failure(name, data, capsys, "--finetune", str(tmp_path / "other.pth"))
    assert "other.pth does not fit this model" in message and "stem.weight" in message
    message = failure(name, data, capsys, "--finetune", nowhere)
    assert nowhere in message and "not a file" in message
    assert "only https://" in failure(name, data, capsys, "--finetune", "http://x.org/a.pth")


@pytest.mark.parametrize("name", MAINS)
def test_evaluation_needs_weights_and_data(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing to score" in failure(name, data, capsys, "--eval")
    if name == "taskonomy":  # its test views lie under --data_path
        assert "nothing to score" in failure(name, data, capsys, "--test")
    else:
        assert "test: needs test_data_path" in failure(name, data, capsys, "--test")
        message = failure(name, data, capsys, "--eval", "--eval_data_path", "none")
        assert "eval: needs eval_data_path" in message
    assert not (tmp_path / "out").exists()


LABELS = {
    "class id 77 is outside 1..4 (void: 0 and 255)": np.full((40, 40), 77, np.uint8),
    "every pixel of the label map is void": np.zeros((40, 40), np.uint8),
    "the label map is 20 x 20": np.ones((20, 20), np.uint8),
    "mode RGB": np.ones((40, 40, 3), np.uint8),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("told", LABELS)
def test_label_maps(told: str, split: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(data.parent / split / "semseg/a/000.png", LABELS[told])
    message = failure("semseg", data, capsys)
    assert told in message and f"{split}/semseg/a/000.png" in message


def test_depth(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data / "depth/b/001.png"
    save(path, np.zeros((40, 40), np.uint16))
    message = failure("depth", data, capsys)
    assert "depth/b/001.png: no pixel has a valid depth" in message
    for split in ("train", "val"):
        for other in (data.parent / split / "depth").rglob("*.png"):
            mask = data.parent / split / "mask_valid" / other.relative_to(other.parents[1])
            save(mask, np.full((40, 40), 255, np.uint8))
    message = failure("depth", data, capsys, "--use_mask_valid")
    assert "depth/b/001.png: the depth of 1600 pixels is 0" in message
    assert "mask_valid/b/001.png marks them as valid" in message
    save(data / "mask_valid/b/001.png", np.zeros((40, 40), np.uint8))
    message = failure("depth", data, capsys, "--use_mask_valid")
    assert "mask_valid/b/001.png: no pixel has a valid depth" in message
    path.unlink()
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(path.with_suffix(".tiff"))
    message = failure("depth", data, capsys)
    assert "depth/b/001.tiff" in message and "float32" in message


def test_a_view_without_valid_pixels(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views = data.parent / "views/depth_zbuffer/building0"
    save(next(views.iterdir()), np.full((40, 48), 65535, np.uint16))
    message = failure("taskonomy", data, capsys)
    assert "depth_zbuffer/building0/point_" in message and "no pixel has a valid depth" in message


def test_inputs_and_classes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--nb_classes 2" in failure("cls", data, capsys, "--nb_classes", "3")
    assert "odd" in failure("cls", data, capsys, "--batch_size", "3")
    message = failure("cls", data, capsys, "--in_domains", "rgb-depth", "--aa", "original")
    assert "--aa original" in message and "aligned" in message
    for name in ("semseg", "depth"):
        message = failure(name, data, capsys, "--in_domains", f"rgb-{name}")
        assert "of the truth" in message
    message = failure("semseg", data, capsys, "--in_domains", "depth")
    assert "decoder_main_tasks: 'rgb' is not among in_domains depth" in message
    shutil.rmtree(data / "semseg")
    assert "semseg" in failure("semseg", data, capsys)
