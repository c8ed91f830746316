"""What ``multimae init`` finds in a data folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from multimae.cli import main
from multimae.specs.survey.data_survey import survey_data
from multimae.specs.survey.guess_modality import depth_unit
from multimae.specs.survey.init_command import TASKS
from multimae.specs.survey.start_config import START_TASKS, write_start_config
from tests.support.image_folders import message_of, save
from tests.support.scenes import write_scenes
from tools import pack_dataset


def guess(root: Path, name: str):
    return next(g for g in survey_data(root).guesses if g.files.folder == name)


def values_of(root: Path, name: str) -> dict[str, object]:
    return {key: value for key, (value, _) in guess(root, name).fields.items()}


def config_of(root: Path, task: str) -> dict[str, object]:
    return yaml.safe_load(write_start_config(survey_data(root), task, Path("own.yaml")))


def write(root: Path, folder: str, array: np.ndarray, count: int = 3, suffix: str = ".npy") -> Path:
    for i in range(count):
        path = root / folder / f"{i}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(path, array)
        else:
            Image.fromarray(array).save(path)
    return root


def noise(*shape: int, high: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(1, high, shape).astype(dtype)


def test_scenes(tmp_path: Path) -> None:
    survey = survey_data(write_scenes(tmp_path, 6))
    assert [(g.name, g.role) for g in survey.guesses] == [
        *(("rgb", "image"), ("depth", "image"), ("semseg", "labels"), ("normals", "image")),
    ]
    assert (survey.layout, survey.samples, survey.complete) == ("modalities", 6, 6)
    assert survey.classes == ["a", "b"]
    normals = survey.guesses[3].modality
    assert (normals.plot, normals.hflip_negate, normals.interpolation) == (
        "normals",
        (0,),
        "nearest",
    )
    assert survey.guesses[1].unit == (1e-3, "millimetres")


def test_bands_of_16_bits(tmp_path: Path) -> None:
    bands = noise(20, 30, 6, high=60000, dtype=np.uint16)
    modality = guess(write(tmp_path, "multispectral-x", bands), "multispectral-x").modality
    assert (modality.name, modality.folder) == ("multispectral_x", "multispectral-x")
    assert (modality.num_channels, modality.max_value) == (6, 65535)
    np.testing.assert_allclose(modality.mean, bands.mean((0, 1)) / 65535, rtol=1e-3)
    np.testing.assert_allclose(modality.std, bands.std((0, 1)) / 65535, rtol=1e-3)


@pytest.mark.parametrize("empty", [np.nan, -9999.0])
def test_floats_with_missing_values(tmp_path: Path, empty: float) -> None:
    values = np.linspace(10, 30, 600, dtype=np.float32).reshape(20, 30)
    values[:5] = empty
    modality = guess(write(tmp_path, "thermal", values), "thermal").modality
    assert (modality.storage, modality.interpolation, modality.plot) == (
        "float",
        "nearest",
        "scalar",
    )
    assert modality.no_data is not None
    np.testing.assert_equal(modality.no_data, empty)
    assert modality.mean == pytest.approx([values[5:].mean()], rel=1e-3)


def test_grey_of_8_bits_is_no_16_bit_modality(tmp_path: Path) -> None:
    fields = values_of(write(tmp_path, "edges", noise(20, 30), suffix=".png"), "edges")
    assert "max_value" not in fields and "storage" not in fields
    assert fields["mean"] == pytest.approx([noise(20, 30).mean() / 255], rel=1e-3)


def test_negative_integers_are_read_as_floats(tmp_path: Path) -> None:
    heights = noise(20, 30, high=900, dtype=np.int16) - np.int16(500)
    assert values_of(write(tmp_path, "heights", heights), "heights")["storage"] == "float"


def test_depth_with_holes_in_its_unit(tmp_path: Path) -> None:
    depth = noise(20, 30, high=3000, dtype=np.uint16) + np.uint16(500)
    depth[:4] = 0
    write(tmp_path, "depth", depth, suffix=".png")
    write(tmp_path, "rgb", noise(20, 30, 3), suffix=".jpg")
    assert values_of(tmp_path, "depth") == {"no_data": 0}
    config = config_of(tmp_path, "depth")
    assert (config["depth_scale"], config["in_domains"]) == (1e-3, "rgb")
    assert config["depth_mean"] == pytest.approx(depth[4:].mean(), rel=1e-3)


@pytest.mark.parametrize(
    "median, integers, metres",
    [(3000, True, 1e-3), (3.0, False, 1.0), (30_000, True, 1e-3), (12, True, None)],
)
def test_depth_unit(median: float, integers: bool, metres: float | None) -> None:
    unit = depth_unit(median, integers)
    assert (unit and unit[0]) == metres


def write_masks(root: Path, ids: list[int], palette: bool = True) -> Path:
    stripes = np.repeat(np.array(ids, np.uint8), 40 // len(ids) + 1)[:40]
    for i in range(4):
        save(root / f"images/{i}.jpg", noise(40, 40, 3))
        mask = Image.fromarray(np.tile(stripes, (40, 1)))
        if palette:
            mask = mask.convert("P")
            mask.putpalette([7 * j % 256 for j in range(768)])
        (root / "masks").mkdir(exist_ok=True)
        mask.save(root / f"masks/{i}.png")
    return root


@pytest.mark.parametrize("palette", [False, True])
def test_masks_with_void(tmp_path: Path, palette: bool) -> None:
    root = write_masks(tmp_path, [0, 1, 2, 255], palette)
    assert [g.name for g in survey_data(root).guesses] == ["rgb", "semseg"]
    assert values_of(root, "masks") == {"folder": "masks", "num_classes": 3, "no_data": 255}
    config = config_of(root, "semseg")
    assert (config["label_folder"], config["num_classes"]) == ("masks", 3)
    assert config["seg_reduce_zero_label"] is False
    assert config["modalities"] == {"rgb": {"folder": "images"}}


def test_class_names_with_void(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('{"classes": ["void", "cat", "dog", "cow"]}')
    config = config_of(write_masks(tmp_path, [0, 1, 2]), "semseg")
    assert (config["num_classes"], config["seg_reduce_zero_label"]) == (3, True)


@pytest.mark.parametrize(
    "ids, label_map",
    [
        ([0, 255], {0: 0, 255: 1}),
        ([0, 100, 200], {0: 0, 100: 1, 200: 2}),
        ([7, 26, 255], {7: 0, 26: 1, 255: 255}),
    ],
)
def test_ids_with_gaps_are_mapped(tmp_path: Path, ids: list[int], label_map: object) -> None:
    root = write_masks(tmp_path, ids)
    config = config_of(root, "semseg")
    count = len([i for i in ids if i != 255 or len(ids) == 2])
    assert (config["label_map"], config["num_classes"]) == (label_map, count)
    modality = guess(root, "masks").modality
    assert modality.no_data == (255 if len(ids) == 3 and 255 in ids else None)


def test_colours_are_mapped(tmp_path: Path) -> None:
    root = write_masks(tmp_path, [0, 1, 2])
    for path in (root / "masks").glob("*.png"):
        Image.open(path).convert("RGB").save(path)
    config = config_of(root, "semseg")
    assert list(config["label_map"].values()) == [0, 1, 2] and config["num_classes"] == 3
    assert set(config["label_map"]) == {"#00070e", "#151c23", "#2a3138"}
    (note,) = survey_data(root).notes
    assert "3 colours" in note


def test_endings_of_names(tmp_path: Path) -> None:
    root = write_masks(tmp_path, [0, 1, 2])
    for path in (root / "images").glob("*.jpg"):
        path.rename(path.with_stem(f"city_{path.stem}_leftImg8bit"))
    for path in (root / "masks").glob("*.png"):
        shutil.copy(path, path.with_stem(f"city_{path.stem}_gtFine_color"))
        path.rename(path.with_stem(f"city_{path.stem}_gtFine_labelIds"))
    config = config_of(root, "semseg")
    assert config["label_suffix"] == "_gtFine_labelIds"
    assert config["modalities"]["rgb"] == {"folder": "images", "suffix": "_leftImg8bit"}
    assert survey_data(root).complete == 4


@pytest.mark.parametrize("keep_files", [True, False])
def test_packs_are_seen_as_their_folders(tmp_path: Path, keep_files: bool) -> None:
    plain = write_scenes(tmp_path / "plain", 4)
    more = [] if keep_files else ["--no_files"]
    pack_dataset.main(["--data_path", str(plain), "--out", str(tmp_path / "packed"), *more])
    for a, b in zip(
        survey_data(plain).guesses, survey_data(tmp_path / "packed").guesses, strict=True
    ):
        assert (a.name, a.fields, a.valid, a.unit) == (b.name, b.fields, b.valid, b.unit)
        assert b.files.packed and a.files.dtype == b.files.dtype


def test_class_folders_in_splits(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            write(tmp_path / split, name, noise(40, 40, 3), count, ".jpg")
    survey = survey_data(tmp_path)
    assert (survey.layout, survey.complete, survey.classes) == ("classes", 8, ["cat", "dog"])
    config = config_of(tmp_path, "cls")
    assert config["nb_classes"] == 2 and config["modalities"] == {"rgb": {"folder": "."}}
    assert config["data_path"] == str(tmp_path / "train")
    assert config["eval_data_path"] == str(tmp_path / "val")
    assert config["epochs"] / config["eval_freq"] <= 200 and config["keep_ckpts"] == 3


def test_splits_below_modalities_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "rgb", "train", noise(40, 40, 3), 2, ".jpg")
    write(tmp_path / "rgb", "val", noise(40, 40, 3), 2, ".jpg")
    (note,) = survey_data(tmp_path).notes
    assert "train, val" in note


def test_missing_files(tmp_path: Path) -> None:
    root = write_scenes(tmp_path, 4)
    (root / "depth/a/000.png").unlink()
    assert config_of(root, "pretrain")["missing"] == "allow"
    assert config_of(root, "semseg")["on_bad_sample"] == "skip"
    for path in (root / "depth").rglob("*.png"):
        path.rename(path.with_stem("depth_" + path.stem))
    assert "depth/a/depth_002.png" in message_of(survey_data, root)


def test_broken_file_is_named(tmp_path: Path) -> None:
    root = write_scenes(tmp_path, 4)
    (root / "rgb/a/002.jpg").write_bytes(b"no picture")
    (note,) = (note for note in survey_data(root).notes if "rgb/a/002.jpg" in note)
    assert "1 of 4" in note


def test_tasks_of_the_command() -> None:
    assert tuple(START_TASKS) == TASKS


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_scenes(tmp_path / "data", 4), tmp_path / "cfg/own.yaml"
    assert main(["init", str(root), "--task", "depth", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"python run_finetuning_depth.py --config {out}" in shown and "1 x uint16" in shown
    options = [line for line in out.read_text().splitlines() if line and line[0] != "#"]
    assert all("  # " in line or line.endswith(":") for line in options)
    assert main(["init", str(root), "--out", str(out)]) == 2
    assert str(out) in capsys.readouterr().err
    assert main(["init", str(root / "rgb"), "--task", "semseg"]) == 2
    assert "label maps" in capsys.readouterr().err
