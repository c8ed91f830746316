"""multimae predict --truth prints what --eval of the script does, digit for digit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import run_finetuning_cls
import run_finetuning_depth
import run_finetuning_semseg
import run_finetuning_taskonomy
from multimae import read_spec
from multimae.cli import main
from tests.support.image_folders import save
from tests.support.scenes import write_scenes
from tests.utils.tasks.test_finetuning_cls import arguments as cls_run
from tests.utils.tasks.test_finetuning_depth import arguments as depth_run
from tests.utils.tasks.test_finetuning_semseg import arguments as semseg_run
from tests.utils.tasks.test_finetuning_taskonomy import arguments as taskonomy_run
from tests.utils.tasks.test_finetuning_taskonomy import write_taskonomy

QUICK = ("--num_workers", "0", "--device", "cpu", "--precision", "fp32", "--batch_size", "4")
BRIEF = ("--epochs", "1", "--num_pictures", "0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", 4)
    write_scenes(root / "val", 7, first_seed=100)
    for i, path in enumerate(sorted(root.glob("*/depth/*/*.png"))):
        depth = np.array(Image.open(path))
        depth[:9, i:] = 0  # not measured
        Image.fromarray(depth).save(path)
        mask = np.where(depth > 0, 255, 0).astype(np.uint8)
        mask[20:30] = 0
        split, _, *name = path.relative_to(root).parts
        save(root.joinpath(split, "mask_valid", *name), mask)
    return root


def evaluated(script: Callable[..., Any], arguments: list[str], out: Path) -> dict[str, float]:
    """Metrics of --eval with the weights that a short run left behind."""
    script(arguments)
    weights = ["--resume", str(out / "model.safetensors")]
    script([*arguments, "--eval", *weights])
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    last = [row for row in rows if row["kind"] == "eval"][-1]
    return {k.removeprefix("eval/"): v for k, v in last.items() if k.startswith("eval/")}


def scored(out: Path, source: Path, truth: Path, *more: str, code: int = 0) -> dict[str, float]:
    target = out / "predicted"
    command = ["predict", str(out / "model.safetensors"), str(source), "--out", str(target)]
    assert main([*command, "--truth", str(truth), *QUICK, *more]) == code
    metrics: dict[str, float] = json.loads((target / "metrics.json").read_text())
    return metrics


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--in_domains", "rgb-depth", "--use_mask_valid", "--seg_use_void_label"),
        ("--output_adapter", "dpt"),
    ],
)
def test_segmentation(data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    arguments = semseg_run(data, tmp_path, *BRIEF, *more)
    expected = evaluated(run_finetuning_semseg.main, arguments, tmp_path)
    assert expected.keys() >= {"mean_iou", "mean_accuracy", "pixel_accuracy", "loss"}
    (head,) = read_spec(tmp_path / "model.safetensors").heads
    assert head.zero_is_void and head.uses_mask_valid == ("--use_mask_valid" in more)
    assert scored(tmp_path, data / "val", data / "val") == expected
    if not more:  # a folder of images and a folder of truths
        found = scored(tmp_path, data / "val/rgb", data / "val/semseg", "--overwrite")
        assert found == expected


@pytest.mark.parametrize("more", [(), ("--use_mask_valid",), ("--depth_scale", "0.01")])
def test_depth(
    data: Path, tmp_path: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = depth_run(data, tmp_path, *BRIEF, *more)
    expected = evaluated(run_finetuning_depth.main, arguments, tmp_path)
    capsys.readouterr()
    assert expected.keys() >= {"delta_1", "rel", "rmse", "log10"}
    assert scored(tmp_path, data / "val", data / "val") == expected
    assert "warning" not in capsys.readouterr().out
    if not more:
        scored(tmp_path, data / "val", data / "val/semseg", "--overwrite")
        assert "warning: the true depth" in capsys.readouterr().out


def test_classes(data: Path, tmp_path: Path) -> None:
    arguments = cls_run(data, tmp_path, *BRIEF)
    expected = evaluated(run_finetuning_cls.main, arguments, tmp_path)
    assert expected.keys() >= {"acc1", "acc5", "loss"}
    assert scored(tmp_path, data / "val", data / "val") == expected
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (data / "val/rgb").rglob("*.jpg"):
        shutil.copy(path, flat / path.name)
    found = scored(tmp_path, flat, data / "val/rgb", "--overwrite")
    assert found["acc1"] == expected["acc1"]
    rows = [json.loads(r) for r in (tmp_path / "predicted/cls.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows} >= {path.stem for path in flat.iterdir()}


LABELS = {
    "class": ("name,label", lambda i: f"kind{i % 3}"),
    "multi": ("name,x,y,z", lambda i: f"{i % 2},{'' if i % 4 == 1 else i % 3 % 2},{(i > 3) + 0}"),
    "number": ("name,width,age", lambda i: f"{0.1 * i * i - 3},{'' if i % 3 == 1 else 1000 + i}"),
}


def write_labels(path: Path, root: Path, kind: str) -> Path:
    title, label = LABELS[kind]
    names = sorted(p.relative_to(root / "rgb").with_suffix("") for p in root.glob("rgb/*/*"))
    path.write_text("\n".join([title, *(f"{n},{label(i)}" for i, n in enumerate(names))]))
    return path


@pytest.mark.parametrize("kind", LABELS)
def test_labels_in_files(data: Path, tmp_path: Path, kind: str) -> None:
    train, val = (write_labels(tmp_path / f"{s}.csv", data / s, kind) for s in ("train", "val"))
    options = ["--label_kind", kind, "--label_file", str(train), "--eval_label_file", str(val)]
    options += ["--nb_classes", "3", "--mixup", "0", "--cutmix", "0", "--eval_batch_size", "4"]
    arguments = cls_run(data, tmp_path, *BRIEF, *options)
    expected = evaluated(run_finetuning_cls.main, arguments, tmp_path)
    if kind == "number":  # whose loss is an option
        del expected["loss"]
    assert len(expected) >= 3 and scored(tmp_path, data / "val", val) == expected
    again = ["predict", str(tmp_path / "model.safetensors"), str(data / "val"), *QUICK]
    again += ["--out", str(tmp_path / "folder"), "--truth", str(data / "val")]
    assert main(again) == 2  # sub-folders a and b are no labels
    (tmp_path / "other.csv").write_text("name,other\na/000,1\n")
    assert main([*again[:-1], str(tmp_path / "other.csv")]) == 2


def test_a_table_is_no_truth_of_maps(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_finetuning_semseg.main(semseg_run(data, tmp_path, *BRIEF))
    table = write_labels(tmp_path / "val.csv", data / "val", "class")
    weights = str(tmp_path / "model.safetensors")
    command = ["predict", weights, str(data / "val"), "--out", str(tmp_path / "p"), *QUICK]
    assert main([*command, "--truth", str(table)]) == 2
    message = capsys.readouterr().err
    assert str(table) in message and "semseg" in message


@pytest.mark.parametrize("masked", [0, 1, 255])
def test_taskonomy(tmp_path: Path, masked: int) -> None:
    root = write_taskonomy(tmp_path / "data")
    rng = np.random.default_rng(1)
    for path in list((root / "depth_zbuffer").rglob("*.png")):
        depth = np.array(Image.open(path))
        depth[5:9] = 65535
        Image.fromarray(depth).save(path)
        if masked:
            mask = (rng.random((40, 48)) > 0.05).astype(np.uint8) * np.uint8(masked)
            save(root / "mask_valid" / path.relative_to(root / "depth_zbuffer"), mask)
    tasks = "depth_zbuffer-normal-principal_curvature-edge_occlusion-reshading"
    arguments = taskonomy_run(root, tmp_path / "run", "--out_domains", tasks, "--num_pictures", "0")
    expected = evaluated(run_finetuning_taskonomy.main, arguments, tmp_path / "run")
    assert len(expected) >= 6
    (building,) = {p.name for p in (root / "rgb").iterdir()} & {"building4"}
    found = scored(tmp_path / "run", root, root, "--only", f"{building}/*", "--inputs", "rgb")
    assert found == {k: v for k, v in expected.items() if k.startswith("l1")}
    names = {p.name for p in (tmp_path / "run/predicted/normal/building4").iterdir()}
    assert names == {f"point_{v}_view_0.png" for v in range(4)}


def test_a_truth_that_does_not_fit_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = semseg_run(data, tmp_path, *BRIEF)
    expected = evaluated(run_finetuning_semseg.main, arguments, tmp_path)
    truth = tmp_path / "truth"
    shutil.copytree(data / "val/semseg", truth)
    victims = sorted(truth.rglob("*.png"))
    save(victims[0], np.full((40, 40), 9, np.uint8))  # no such class
    victims[1].unlink()
    found = scored(tmp_path, data / "val/rgb", truth, code=1)
    shown = capsys.readouterr()
    assert str(victims[0]) in shown.err and "1 of 7" in shown.out
    assert found["pixel_accuracy"] != expected["pixel_accuracy"]
    assert len(list((tmp_path / "predicted/semseg").rglob("*.png"))) == 7
    nothing = ["--truth", str(data / "train/rgb/a"), "--overwrite", *QUICK]
    command = ["predict", str(tmp_path / "model.safetensors"), str(data / "val/rgb")]
    assert main([*command, "--out", str(tmp_path / "other"), *nothing]) == 2
    assert not (tmp_path / "other").exists()
