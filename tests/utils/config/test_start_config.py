"""Configs that ``multimae init`` writes run unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import run_finetuning_cls
import run_finetuning_depth
import run_finetuning_semseg
import run_pretraining_multimae
from multimae.cli import main
from multimae.specs.survey.data_survey import survey_data
from multimae.specs.survey.start_config import write_start_config
from tests.support.scenes import write_scenes
from tools.rooms.derived_modalities import derive

REPO = Path(__file__).parents[3]
SCRIPTS = {
    "pretrain": run_pretraining_multimae.main,
    "semseg": run_finetuning_semseg.main,
    "depth": run_finetuning_depth.main,
    "cls": run_finetuning_cls.main,
}


def scenes(root: Path) -> Path:
    write_scenes(root, 4)
    shutil.rmtree(root / "normals")
    return root


def splits(root: Path) -> Path:
    scenes(root / "train")
    scenes(root / "val")
    return root


def thermal(root: Path) -> Path:
    derive(scenes(root), ["thermal"])
    for name in ("depth", "semseg"):
        shutil.rmtree(root / name)
    return root


def bands(root: Path) -> Path:
    derive(scenes(root), ["edges", "multispectral"])
    return root


def palette_masks(root: Path) -> Path:
    scenes(root)
    shutil.rmtree(root / "depth")
    (root / "rgb").rename(root / "images")
    for path in (root / "semseg").rglob("*.png"):
        ids = np.array(Image.open(path))
        ids[:3] = 255
        mask = Image.fromarray(ids).convert("P")
        mask.putpalette([11 * i % 256 for i in range(768)])
        mask.save(path)
    (root / "semseg").rename(root / "masks")
    return root


def binary_masks(root: Path) -> Path:
    palette_masks(root)
    for path in (root / "masks").rglob("*.png"):
        ids = np.array(Image.open(path))
        Image.fromarray(np.where((ids > 0) & (ids < 255), 255, 0).astype(np.uint8)).save(path)
        path.rename(path.with_stem(f"{path.stem}_mask"))
    return root


def colour_masks(root: Path) -> Path:
    palette_masks(root)
    for path in (root / "masks").rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    return root


def class_folders(root: Path) -> Path:
    for split in ("train", "val"):
        write_scenes(root.with_name("scenes") / split, 4)
        shutil.move(root.with_name("scenes") / split / "rgb", root / split)
    return root


@pytest.mark.parametrize(
    "make, task",
    [
        (splits, "pretrain"),
        (splits, "semseg"),
        (scenes, "depth"),
        (scenes, "cls"),
        (thermal, "pretrain"),
        (bands, "pretrain"),
        (bands, "semseg"),
        (palette_masks, "semseg"),
        (palette_masks, "pretrain"),
        (binary_masks, "semseg"),
        (binary_masks, "pretrain"),
        (colour_masks, "semseg"),
        (class_folders, "cls"),
        (class_folders, "pretrain"),
    ],
)
def test_written_config_runs(
    make: object, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(make)
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "data")
    assert main(["init", "data", "--task", task, "--out", "own.yaml"]) == 0
    SCRIPTS[task](["--config", "own.yaml", "--epochs", "1", "--max_steps", "2", "--device", "cpu"])
    lines = (tmp_path / "output/own/log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2


@pytest.mark.parametrize("task", SCRIPTS)
def test_configs_to_fill_in_explain_every_line(task: str) -> None:
    text = (REPO / f"cfgs/own/{task}.yaml").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all("  # " in line or line.endswith(":") for line in lines)
    assert f"--config cfgs/own/{task}.yaml" in text


@pytest.mark.parametrize("task", SCRIPTS)
def test_configs_to_fill_in_have_the_keys_of_written_ones(task: str, tmp_path: Path) -> None:
    """Keys that depend on the data aside."""
    root = splits(tmp_path / "data")
    text = write_start_config(survey_data(root), task, tmp_path / "own.yaml")
    by_hand = yaml.safe_load((REPO / f"cfgs/own/{task}.yaml").read_text())
    assert set(yaml.safe_load(text)) - {"standardize_depth", "modalities"} <= set(by_hand)
