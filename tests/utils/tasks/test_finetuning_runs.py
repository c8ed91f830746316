"""Shared parts of the fine-tuning scripts: pictures, folders, downloads, EMA."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import run_finetuning_depth
import run_finetuning_semseg
from multimae.specs.errors import UserError
from multimae.weights.downloads import fetch
from tests.support.scenes import write_scenes
from tests.utils.config.test_config_contract import SCRIPTS
from tests.utils.tasks.test_finetuning_cls import arguments as cls_arguments
from tests.utils.tasks.test_finetuning_depth import arguments as depth_arguments
from tests.utils.tasks.test_finetuning_semseg import arguments, rows
from utils.config.cls_options import ClsConfig
from utils.config.depth_options import DepthConfig
from utils.config.finetune_options import FinetuneLogOptions
from utils.config.parse import parse_config
from utils.config.semseg_options import SemsegConfig
from utils.data.samplers import SampleKey
from utils.distributed.world import World
from utils.logs.paths import RunPaths
from utils.logs.trackers import Wandb
from utils.tasks.base import PictureEvaluator
from utils.tasks.classification import ClassificationFinetuning
from utils.tasks.depth_estimation import HEAD, DepthFinetuning
from utils.tasks.segmentation import SegmentationFinetuning
from utils.training.loop import due_evaluators, to_device_of

REPO = Path(__file__).parents[3]
PAGE = (REPO / "FINETUNING.md").read_text()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", 8)
    write_scenes(root / "val", 5, first_seed=100)
    return root


def test_evaluation_does_not_change_the_run(data: Path, tmp_path: Path) -> None:
    run_finetuning_semseg.main(arguments(data, tmp_path, "--epochs", "1"))
    before = (tmp_path / "config.yaml").read_text()
    run_finetuning_semseg.main(arguments(data, tmp_path, "--epochs", "1", "--eval"))
    assert (tmp_path / "config.yaml").read_text() == before
    assert yaml.safe_load(before)["eval"] is False
    trained, scored = rows(tmp_path, "eval")
    assert scored == trained and trained["step"] == 2


def test_gradient_checkpointing_changes_no_number(data: Path, tmp_path: Path) -> None:
    """Nor where drop-path is drawn again in the backward pass."""
    for name, more in (("as_it_is", ()), ("recomputed", ("--grad_checkpointing",))):
        options = ("--epochs", "1", "--drop_path_encoder", "0.3", *more)
        run_finetuning_semseg.main(arguments(data, tmp_path / name, *options))
    plain, recomputed = (rows(tmp_path / name, "train") for name in ("as_it_is", "recomputed"))
    assert [r["loss"] for r in plain] == [r["loss"] for r in recomputed]
    assert (
        rows(tmp_path / "as_it_is", "eval")[-1]["eval/mean_iou"]
        == (rows(tmp_path / "recomputed", "eval")[-1]["eval/mean_iou"])
    )


def test_no_save_ckpt_tests_the_final_weights(data: Path, tmp_path: Path) -> None:
    test = ["--test_data_path", str(data / "val"), "--epochs", "1", "--no_save_ckpt"]
    run_finetuning_semseg.main(arguments(data, tmp_path, *test))
    trained, tested = rows(tmp_path, "eval")
    assert tested["test/mean_iou"] == trained["eval/mean_iou"]
    assert not list(tmp_path.glob("**/*.pth"))


def test_pictures_are_drawn_less_often_than_scores(data: Path, tmp_path: Path) -> None:
    run_finetuning_semseg.main(arguments(data, tmp_path, "--epochs", "5", "--log_images_freq", "2"))
    assert len(rows(tmp_path, "eval")) == 5
    drawn = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert drawn == [f"predictions_eval-{2 * epoch:06d}.png" for epoch in (2, 4, 5)]


class NoPictures(PictureEvaluator):
    def run(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        return {}


def test_when_pictures_are_due() -> None:
    every = [NoPictures(), SimpleNamespace()]
    log = FinetuneLogOptions(eval_freq=4, log_images_freq=10)
    drawn = [e for e in range(4, 44, 4) if due_evaluators(every, log, e, False) == every]  # type: ignore[arg-type, comparison-overlap]
    assert drawn == [12, 20, 32, 40]
    assert due_evaluators(every, log, 6, True) == every  # type: ignore[arg-type, comparison-overlap]


def test_limited_evaluation_uses_evenly_spaced_images(data: Path) -> None:
    cfg = parse_config(DepthConfig, depth_arguments(data, "", "--max_train_images", "4"))
    few = DepthFinetuning(cfg, World(0, 1, torch.device("cpu"))).train_set()
    names = [few[SampleKey(0, i)].name for i in range(len(few))]
    assert names == ["a/000", "a/004", "b/001", "b/005"]


def test_every_task_trains_on_evenly_spaced_images(data: Path) -> None:
    world, few = World(0, 1, torch.device("cpu")), ("--max_train_images", "3")
    semseg = SegmentationFinetuning(parse_config(SemsegConfig, arguments(data, "", *few)), world)
    weighted = cls_arguments(data, "", *few, "--class_weights", "balanced")
    cls = ClassificationFinetuning(parse_config(ClsConfig, weighted), world)
    for train_set in (semseg.train_set(), cls.train_set()):
        names = [train_set[SampleKey(0, i)].name for i in range(len(train_set))]
        assert names == ["a/000", "a/004", "b/003"]
    # Of these three; of all eight, as many are of each class.
    assert cls.class_weights == pytest.approx((0.75, 1.5))


def test_depth_pictures_name_their_scale(data: Path) -> None:
    cfg = parse_config(DepthConfig, depth_arguments(data, ""))
    target = DepthFinetuning(cfg, World(0, 1, torch.device("cpu"))).target
    truth = target.prepare(torch.tensor([[[[0, 1000, 3000]]]]))
    truth[..., 0] = torch.nan
    assert target.caption(truth) == f"{HEAD}: dark 1.04, bright 2.96 m"
    shown = dataclasses.replace(target, unit="")
    assert shown.caption(truth) == f"{HEAD}: dark 0.02, bright 0.05"


def test_ema_on_another_device_is_copied_for_evaluation() -> None:
    here, there = nn.Linear(2, 2, device="meta"), nn.Linear(2, 2)
    moved = to_device_of(here, there)
    assert moved is not there and next(moved.parameters()).device.type == "meta"
    assert next(there.parameters()).device.type == "cpu" and to_device_of(there, there) is there


def test_ema_is_evaluated_and_saved(data: Path, tmp_path: Path) -> None:
    ema = ["--model_ema", "--model_ema_decay", "0.5", "--model_ema_force_cpu"]
    run_finetuning_depth.main(depth_arguments(data, tmp_path, *ema))
    last = torch.load(tmp_path / "checkpoints/checkpoint-2.pth", weights_only=True)
    best = torch.load(tmp_path / "checkpoints/checkpoint-best.pth", weights_only=True)
    key = "encoder.0.attn.qkv.weight"
    if best["epoch"] == 2:
        assert torch.equal(best["model"][key], last["model_ema"][f"module.{key}"])
    assert not torch.equal(last["model"][key], last["model_ema"][f"module.{key}"])


def test_downloads_with_equal_names_are_separate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    calls: list[str] = []

    def answer(url: str, path: Path, digest: str) -> None:
        calls.append(url)
        path.write_text(url)

    monkeypatch.setattr("multimae.weights.downloads.download", answer)
    urls = [f"https://x.org/{place}/model.safetensors" for place in "ab"]
    assert [fetch(url).read_text() for url in [*urls, *urls]] == [*urls, *urls]
    assert calls == urls


def test_wandb_gets_the_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, object] = {}
    module = SimpleNamespace(init=lambda **options: given.update(options), Error=RuntimeError)
    monkeypatch.setitem(__import__("sys").modules, "wandb", module)
    options = FinetuneLogOptions(wandb_group="seeds", wandb_project="p")
    Wandb(options, RunPaths(tmp_path), {"lr": 1}).open(0)
    assert (given["group"], given["project"], given["config"]) == ("seeds", "p", {"lr": 1})
    first = given["id"]
    Wandb(options, RunPaths(tmp_path), {"lr": 1}).open(0)  # resumed
    assert given["id"] == first and given["resume"] == "allow"


def test_a_missing_wandb_key_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**options: object) -> None:
        raise LookupError("No API key configured.\nUse `wandb login` to log in.")

    module = SimpleNamespace(init=refuse, Error=LookupError)
    monkeypatch.setitem(__import__("sys").modules, "wandb", module)
    with pytest.raises(UserError, match=r"No API key.*log in; set WANDB_API_KEY") as caught:
        Wandb(FinetuneLogOptions(), RunPaths(tmp_path), {}).open(0)
    assert "\n" not in str(caught.value)


COMMANDS = re.findall(r"^python (run_finetuning_\w+)\.py (.*)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize(("script", "words"), COMMANDS)
def test_documented_commands_parse(script: str, words: str) -> None:
    arguments = words.replace("cfgs/", f"{REPO}/cfgs/").split()
    parse_config(SCRIPTS[script][0], arguments)


def test_every_script_has_three_commands_and_every_recipe_a_line() -> None:
    counts = Counter(script for script, _ in COMMANDS)
    assert set(counts.values()) == {3} and len(counts) == 4
    folders = {path.parent.relative_to(REPO) for path in (REPO / "cfgs/finetune").rglob("*.yaml")}
    for folder in folders - {f for f in folders if "taskonomy" in f.parts}:
        assert f"`{folder}/" in PAGE
    tasks = [f.name.removeprefix("rgb2").removesuffix("-1k") for f in folders if "-1k" in f.name]
    assert len(tasks) == 8 and all(task in PAGE for task in tasks)


def test_json_rows_have_no_nan(data: Path, tmp_path: Path) -> None:
    """NaN metrics of absent classes are null in the log."""
    run_finetuning_semseg.main(arguments(data, tmp_path, "--epochs", "1"))
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=lambda word: pytest.fail(word))
        assert not any(isinstance(v, float) and np.isnan(v) for v in row.values())
