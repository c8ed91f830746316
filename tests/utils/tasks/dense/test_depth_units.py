"""The same scene stored as millimetres, centimetres or metres gives the same depth scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import run_finetuning_depth
from multimae import MultiMAE, read_spec
from tests.support.image_folders import message_of, save
from tests.support.scenes import tiny_run, write_scenes
from tests.utils.tasks.test_finetuning_depth import SCORES, arguments, evaluations
from utils.config.depth_options import DepthConfig
from utils.config.parse import parse_config
from utils.data.batches import Batch
from utils.distributed.world import World
from utils.tasks.depth_estimation import DepthFinetuning

ONE_STEP = ("--max_steps", "1", "--num_pictures", "0")
METRES = ("--depth_scale", "1")
DECLARED = "{target_depth: {storage: float, no_data: -9999}}"
# Folder, options, and the written array of depth in millimetres, multiples of 10; 0 is missing.
STORED: dict[str, tuple[tuple[str, ...], Any]] = {
    "mm": ((), lambda mm: mm),
    "cm": (("--depth_scale", "0.01"), lambda mm: mm // 10),
    "cm16": (
        ("--depth_scale", "0.01", "--modalities", "{target_depth: {storage: integer}}"),
        lambda mm: mm // 10,
    ),
    "kitti": (("--depth_scale", str(1 / 256)), lambda mm: (mm // 125 * 32).astype(np.uint16)),
    "npy": (METRES, lambda mm: np.where(mm, mm / 1000, np.nan).astype(np.float32)),
    "tif": (METRES, lambda mm: np.where(mm, mm / 1000, np.nan).astype(np.float32)),
    "float_mm": (
        ("--modalities", DECLARED),
        lambda mm: np.where(mm, mm, -9999.0).astype(np.float32),
    ),
}


def write(root: Path, kind: str) -> Path:
    """Scenes of depth in 125ths and tens of millimetres, a corner of it missing."""
    write_scenes(root / "train", 4)
    write_scenes(root / "val", 3, 100)
    for path in list(root.rglob("depth/*/*.png")):
        mm = np.asarray(Image.open(path)) // 250 * 250
        mm[:9, :5] = 0
        array = STORED[kind][1](mm.astype(np.uint16))
        if array.dtype == np.uint16:
            save(path, array)
            continue
        path.unlink()
        if kind == "npy":
            np.save(path.with_suffix(".npy"), array)
        else:
            save(path.with_suffix(".tif"), array)
    return root


@pytest.fixture(scope="module")
def millimetres(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write(tmp_path_factory.mktemp("mm"), "mm")
    run_finetuning_depth.main(arguments(root, root / "out", *ONE_STEP))
    return root / "out"


@pytest.mark.parametrize("kind", [k for k in STORED if k != "mm"])
def test_scores_do_not_depend_on_the_unit_of_the_files(
    kind: str, millimetres: Path, tmp_path: Path
) -> None:
    data, options = write(tmp_path, kind), STORED[kind][0]
    run_finetuning_depth.main(arguments(data, tmp_path / "out", *ONE_STEP, *options))
    ours, theirs = evaluations(tmp_path / "out")[-1], evaluations(millimetres)[-1]
    assert theirs["eval/rmse"] > 100  # mm
    for name in SCORES:
        assert ours[f"eval/{name}"] == pytest.approx(theirs[f"eval/{name}"], rel=1e-4), name
    photo = next((data / "val/rgb").rglob("*.jpg"))
    ours, theirs = (
        MultiMAE.from_pretrained(run / "model.safetensors").predict(photo)["depth"]
        for run in (tmp_path / "out", millimetres)
    )
    assert ours.unit == theirs.unit == "m"
    assert np.allclose(ours.values, theirs.values, rtol=1e-4) and 0.5 < ours.values.mean() < 5
    run_finetuning_depth.main(  # the weights know the scale
        arguments(data, tmp_path / "out", "--eval", *options[2:] * (kind == "cm16"))
        if kind != "float_mm"
        else arguments(data, tmp_path / "out", "--eval", *options)
    )
    again = evaluations(tmp_path / "out")
    assert again[-1]["eval/rmse"] == pytest.approx(again[-2]["eval/rmse"], rel=1e-6)


def test_scoring_takes_the_target_from_the_weights(millimetres: Path, tmp_path: Path) -> None:
    data = millimetres.parent
    scoring = arguments(data, tmp_path, "--eval", "--resume", str(next(
        (millimetres / "checkpoints").glob("*.pth"))), "--num_pictures", "0")  # fmt: skip
    wrong = (*METRES, "--depth_mean", "1000")
    message = message_of(run_finetuning_depth.main, [*scoring, *wrong])
    for part in ("depth_scale: the weights' 0.001, yours 1", "depth_mean: the weights' 2070.78"):
        assert part in message
    assert "depth_std" not in message and "--override_inputs" in message
    run_finetuning_depth.main([*scoring, "--depth_scale", "0.002", "--override_inputs"])
    twice = evaluations(tmp_path)[-1]
    run_finetuning_depth.main([*scoring, "--depth_scale", "0.001", "--depth_mean", "2070.7764"])
    assert evaluations(tmp_path)[-1]["eval/rmse"] != pytest.approx(twice["eval/rmse"], rel=1e-2)
    assert evaluations(tmp_path)[-1]["eval/rmse"] == evaluations(millimetres)[-1]["eval/rmse"]


def depth_task(data: Path, *more: str) -> DepthFinetuning:
    cfg = parse_config(DepthConfig, arguments(data, "", *more))
    return DepthFinetuning(cfg, World(0, 1, torch.device("cpu")))


def test_valid_depth_is_measured(tmp_path: Path) -> None:
    job = depth_task(tmp_path, "--modalities", DECLARED.replace("-9999", "65504"), *METRES)
    stored = torch.tensor([[[[0.0, -1.0, 65504.0, 3.0, torch.nan, torch.inf]]]])
    valid = job.build_task().valid(Batch({"target_depth": stored}, ["a"]))
    assert valid.flatten().tolist() == [False, False, False, True, False, False]


def test_the_spec_of_the_target_is_checked(tmp_path: Path) -> None:
    for row, told in (
        ("{storage: flaot}", "flaot"),
        ("{no_data: -1}", "no_data: -1"),
        ("{mean: [0.1]}", "depth_mean"),
        ("{max_valeu: 3}", "max_valeu"),
        ("3", "row"),
    ):
        message = message_of(depth_task, tmp_path, "--modalities", f"{{target_depth: {row}}}")
        assert "target_depth" in message and told in message
    assert "'target_depth' is the truth" in message_of(
        depth_task, tmp_path, "--in_domains", "rgb-target_depth", "--modalities", DECLARED
    )


@pytest.mark.parametrize(
    ("unit", "warned"), [(1, False), (1000, True), (0.1, False), (0.02, True), (1e-3, True)]
)
def test_depth_in_an_unlikely_unit_is_reported(unit: float, warned: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(2):
            depth = rng.uniform(1200, 9000, (32, 32)) * unit
            np.save(tmp_path / "d.npy", depth.astype(np.float32))
            path = tmp_path / split / f"depth/{i}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "d.npy").rename(path)
            save(tmp_path / split / f"rgb/{i}.png", np.zeros((32, 32, 3), np.uint8))
    row = ("--modalities", "{target_depth: {storage: float}}")
    job = depth_task(tmp_path, *row, "--depth_scale", "0.001")
    lines = [line for line in job.describe(job.train_set()) if line.startswith("warning")]
    assert len(lines) == warned
    if warned:
        assert "--depth_scale" in lines[0] and str(tmp_path / "train") in lines[0]
        job = depth_task(tmp_path, *row)
        message = message_of(lambda: list(job.describe(job.train_set())))
        assert message == lines[0].removeprefix("warning: ")


def test_files_of_floats_name_the_option(tmp_path: Path) -> None:
    data = write(tmp_path, "npy")
    job = depth_task(data)
    assert "--depth_scale 1" in message_of(job.train_set)


@pytest.mark.parametrize("kind", ["u8", "metres"])
def test_depth_inputs_out_of_range_are_reported(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import run_pretraining_multimae
    from tools.check_dataset import main as doctor

    train = write_scenes(tmp_path / "train", 4)
    for path in list(train.glob("depth/*/*.png")):
        mm = np.asarray(Image.open(path))
        if kind == "u8":
            save(path, (mm // 100).astype(np.uint16))
        else:
            path.unlink()
            np.save(path.with_suffix(".npy"), mm.astype(np.float32) / 50)
    rows = "semseg: {num_classes: 5}"
    if kind == "metres":
        rows += ", depth: {storage: float}"
    argv = tiny_run(train, "", "--max_steps", "1", "--no_standardize_depth")
    argv[argv.index("--modalities") + 1] = f"{{{rows}}}"
    about = f"modality 'depth' of {train}"
    if kind == "u8":
        message = message_of(run_pretraining_multimae.main, argv)
        assert about in message and "max_value: 255" in message
        told = "max_value: 255"
        argv[argv.index("--modalities") + 1] = f"{{{rows}, depth: {{max_value: 65535}}}}"
    else:
        told = "after normalization"
    run_pretraining_multimae.main(argv)
    assert f"warning: {about}" in capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(f"modalities: {{{rows}}}\n")
    doctor([str(train), "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out"),
            "--modalities", "depth"])  # fmt: skip
    assert told in capsys.readouterr().out


def test_max_value_of_floats_is_stored_with_weights(millimetres: Path) -> None:
    from dataclasses import replace

    from multimae import ModelSpec

    spec = read_spec(millimetres / "model.safetensors")
    head = replace(spec.heads[0], target=replace(
        spec.heads[0].target, storage="float", max_value=255.0))  # fmt: skip
    spec = replace(spec, heads=(head,))
    assert ModelSpec.from_json(spec.to_json()) == spec
