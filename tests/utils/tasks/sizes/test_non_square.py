"""Images of any height and width in all scripts, from pre-training to prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import run_finetuning_cls
import run_finetuning_depth
import run_finetuning_semseg
import run_finetuning_taskonomy
import run_pretraining_multimae
from multimae import MultiMAE
from multimae.specs.spec import ModelSpec
from multimae.weights.guess import guess_spec
from tests.support.scenes import tiny_run, write_scenes
from tests.utils.tasks import (
    test_finetuning_cls,
    test_finetuning_depth,
    test_finetuning_semseg,
    test_finetuning_taskonomy,
)
from utils.config.options import ModelOptions
from utils.config.parse import ConfigError, parse_config, to_yaml
from utils.config.pretrain_options import PretrainConfig
from utils.config.semseg_options import SemsegConfig
from utils.data.dense_transforms import INSIDE, SegTrainTransform
from utils.data.sets.class_folders import default_crop_pct

SIZE = ("--input_size", "32", "48")
Arguments = Callable[..., list[str]]
SCRIPTS: dict[str, tuple[ModuleType, Arguments]] = {
    "cls": (run_finetuning_cls, test_finetuning_cls.arguments),
    "semseg": (run_finetuning_semseg, test_finetuning_semseg.arguments),
    "depth": (run_finetuning_depth, test_finetuning_depth.arguments),
    "taskonomy": (run_finetuning_taskonomy, test_finetuning_taskonomy.arguments),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and weights pre-trained at 32 x 48."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", 8)
    write_scenes(root / "val", 4, first_seed=100)
    more = ("--eval_data_path", str(root / "val"), "--epochs", "1", *SIZE)
    run_pretraining_multimae.main(tiny_run(root / "train", root / "pre", *more))
    return root


def test_pre_training_and_reconstruction(root: Path) -> None:
    model = MultiMAE.from_pretrained(root / "pre/model.safetensors")
    assert model.spec.image_size == (32, 48)
    assert model.state_dict()["input_adapters.rgb.pos_emb"].shape[-2:] == (4, 6)
    image = np.zeros((40, 60, 3), np.uint8)
    shown = model.reconstruct({"rgb": image}, 6)
    assert tuple(shown.predictions["depth"].shape[-2:]) == (32, 48)
    assert ModelSpec.from_json(model.spec.to_json()) == model.spec
    state = model.state_dict()
    assert guess_spec(state, {}).image_size == (32, 48)
    log = [json.loads(row) for row in (root / "pre/log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["gain"]) for row in log if row["kind"] == "eval")


@pytest.mark.parametrize("name", SCRIPTS)
def test_fine_tuning_scores_and_predicts(root: Path, tmp_path: Path, name: str) -> None:
    script, arguments = SCRIPTS[name]
    data = root
    if name == "taskonomy":
        data = test_finetuning_taskonomy.write_taskonomy(tmp_path / "views")
    options = arguments(data, tmp_path / "out", *SIZE, "--epochs", "1")
    if name != "taskonomy":
        options += ["--finetune", str(root / "pre/model.safetensors")]
    script.main(options)
    path = tmp_path / "out/log.jsonl"
    first = json.loads(path.read_text().splitlines()[-1])
    script.main([*options, "--eval"])
    assert json.loads(path.read_text().splitlines()[-1]) == first
    model = MultiMAE.from_pretrained(tmp_path / "out/model.safetensors")
    assert model.spec.image_size == (32, 48)
    assert "input_size: [32, 48]" in (tmp_path / "out/config.yaml").read_text()
    prediction = model.predict({model.spec.inputs[0].name: np.zeros((40, 60, 3), np.uint8)})
    assert set(prediction) == {head.name for head in model.spec.heads}


def test_weights_of_squares_fit_other_shapes(root: Path, tmp_path: Path) -> None:
    run_pretraining_multimae.main(tiny_run(root / "train", tmp_path / "pre", "--epochs", "1"))
    assert MultiMAE.from_pretrained(tmp_path / "pre/model.safetensors").spec.image_size == 32
    weights = ("--finetune", str(tmp_path / "pre/model.safetensors"))
    arguments = test_finetuning_semseg.arguments
    run_finetuning_semseg.main(arguments(root, tmp_path / "out", *SIZE, *weights, "--epochs", "1"))
    fates = (tmp_path / "out/weights.txt").read_text()
    # Tables of fixed sines are computed for the grid.
    state = MultiMAE.from_pretrained(tmp_path / "out/model.safetensors").state_dict()
    assert state["input_adapters.rgb.pos_emb"].shape[-2:] == (4, 6) and "pos_emb" in fates


def test_one_side_remains_one_number(tmp_path: Path) -> None:
    for flags, expected in ((["64"], 64), (["64", "64"], 64), (["64", "96"], (64, 96))):
        cfg = parse_config(SemsegConfig, ["--input_size", *flags])
        assert cfg.model.input_size == expected
        path = tmp_path / "config.yaml"
        path.write_text(to_yaml(cfg))
        assert parse_config(SemsegConfig, ["--config", str(path)]).model.input_size == expected
    assert ModelOptions(input_size=(32, 32)).input_size == 32
    assert ModelSpec("multivit_tiny", (), image_size=(64, 64)).image_size == 64
    with pytest.raises(ConfigError, match="input_size.*100"):
        parse_config(PretrainConfig, ["--input_size", "96", "100"])
    for bad in (["1", "2", "3"], ["a"], ["0", "16"]):
        with pytest.raises(ConfigError, match="input_size"):
            parse_config(SemsegConfig, ["--input_size", *bad])
    assert default_crop_pct((224, 512)) == 224 / 256 and default_crop_pct((384, 512)) == 1


def test_training_crops_and_pads_to_the_shape() -> None:
    from multimae.specs.modalities import default_table

    table = default_table()
    chosen: list[Any] = [table["rgb"], table["semseg"]]
    transform = SegTrainTransform(chosen, (32, 64))
    for seed in range(6):
        torch.manual_seed(seed)
        pixels = {"rgb": np.zeros((50, 40, 3), np.uint8), "semseg": np.zeros((50, 40), np.uint8)}
        images = transform(pixels)
        assert images["rgb"].shape == (3, 32, 64) and images["semseg"].shape == (8, 16)
        assert images[INSIDE].shape == (32, 64)
