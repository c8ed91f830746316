"""GDAL's no-data tag in TIFF files: applied like a declared ``no_data``, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

import run_pretraining_multimae
from multimae import MultiMAE, read_spec
from multimae.images.folders import MultiModalFolder
from multimae.images.inputs import load_inputs
from multimae.images.no_data_tags import with_no_data_tags
from multimae.images.preprocess import pixels_with_value
from multimae.images.readers import read
from multimae.specs.modalities import Modality, make_table
from multimae.specs.spec import ModelSpec
from tests.support.image_folders import message_of, save
from tests.support.scenes import NUM_CLASSES, tiny_run, write_scenes
from tools.check_dataset import main as doctor
from tools.pack_dataset import main as pack
from utils.config.parse import parse_config
from utils.config.semseg_options import SemsegConfig
from utils.data.samplers import SampleKey
from utils.data.statistics import measure
from utils.distributed.world import World
from utils.tasks.segmentation import SegmentationFinetuning

SIZE = (20, 20)


def write(path: Path, values: np.ndarray, tag: str, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, extratags=[(42113, "s", 0, tag, True)], **options)
    return path


def heat(**fields: Any) -> Modality:
    base = {"num_channels": 1, "interpolation": "nearest", "plot": "scalar", "max_value": 65535}
    return make_table({"heat": {**base, **fields}})["heat"]


FLOAT = heat(storage="float")


@pytest.mark.parametrize(
    ("dtype", "tag", "m", "expected"),
    [
        ("float32", "-9999", FLOAT, -9999.0),
        ("float32", "-99.9", FLOAT, float(np.float32(-99.9))),
        ("float64", "-99.9", FLOAT, float(np.float32(-99.9))),
        ("float16", "-9999", FLOAT, -10000.0),  # as float16 stores it
        ("float32", "nan", FLOAT, np.nan),
        ("float32", "-3.4028234663852886e+38", FLOAT, float(np.finfo(np.float32).min)),
        ("int16", "-32768", FLOAT, -32768.0),
        ("uint16", "0", heat(), 0.0),
        ("uint16", "65535", heat(), 65535.0),
        ("uint8", "255.0", heat(max_value=255), 255.0),
        ("uint8", "-9999", heat(max_value=255), None),  # cannot occur
        ("uint16", "0.5", heat(), None),
        ("uint16", "nan", heat(), None),
        ("float32", "none", FLOAT, None),
        ("float32", "-9999", heat(storage="float", no_data=-1), -1.0),
        ("float32", "-9999", heat(storage="float", interpolation="bicubic"), None),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_tag_is_the_no_data_of_the_modality(
    dtype: str, tag: str, m: Modality, expected: float | None, packed: bool, tmp_path: Path
) -> None:
    values = np.arange(400).reshape(SIZE).astype(dtype)
    empty = expected if expected is not None and m.no_data is None else None
    if empty is not None:
        values[2:5] = np.dtype(dtype).type(float(tag))
    for i in range(2):
        write(tmp_path / f"data/heat/{i}.tif", values, tag)
    root = tmp_path / "data"
    if packed:
        root = tmp_path / "pack"
        pack(["--data_path", str(tmp_path / "data"), "--out", str(root)])
    (found,) = with_no_data_tags([m], root)
    assert found.no_data == expected or (expected is not None and np.isnan(expected))
    if empty is None:
        return
    folder = MultiModalFolder(root, [found])
    pixels = torch.from_numpy(np.asarray(folder.read(0, found)).copy())[None, None]
    valid = pixels_with_value(pixels, found)
    assert valid is not None
    held = np.arange(400).reshape(SIZE) == (empty if dtype.startswith("uint") else -1)
    expected_empty = held.copy()
    expected_empty[2:5] = True
    assert torch.equal(~valid[0, 0], torch.from_numpy(expected_empty))
    statistics = measure(folder, [found])["heat"]
    true = values[~expected_empty].astype(np.float64).mean() / found.max_value
    assert statistics.mean[0] == pytest.approx(true, rel=1e-6)
    spec = ModelSpec("pretrain_multimae_nano", (m,), image_size=16, patch_size=4)
    if not packed:  # weights without no_data
        inputs = load_inputs({"heat": root / "heat/0.tif"}, spec)
        assert (inputs.x["heat"][0, 0, 2:4] == 0).all() and inputs.x["heat"].isfinite().all()


def test_contradicting_values_are_refused_by_name(tmp_path: Path) -> None:
    values = np.full(SIZE, 3, np.float32)
    values[0] = -9999
    path = write(tmp_path / "heat/a.tif", values, "-9999")
    message = message_of(read, path, heat(storage="float", no_data=-1))
    assert "declares -9999 empty" in message and "declares -1" in message and "20 val" in message
    bicubic = heat(storage="float", interpolation="bicubic")
    assert "interpolation: nearest" in message_of(read, path, bicubic)
    values[0] = -1
    write(tmp_path / "heat/b.tif", values, "-1")
    message = message_of(with_no_data_tags, [FLOAT], tmp_path)
    for part in ("'heat'", "-9999", "-1", "a.tif", "b.tif"):
        assert part in message
    spec = ModelSpec("pretrain_multimae_nano", (FLOAT,), image_size=16, patch_size=4)
    with pytest.raises(ValueError, match="different no-data"):
        load_inputs({"heat": [tmp_path / "heat/a.tif", tmp_path / "heat/b.tif"]}, spec)


def test_empty_pixels_of_photos_and_label_inputs_are_refused(tmp_path: Path) -> None:
    table = make_table({"semseg": {"num_classes": NUM_CLASSES}})
    colours = np.full((*SIZE, 3), 90, np.uint8)
    colours[0, 0] = (0, 90, 90)
    path = write(tmp_path / "a.tif", colours, "0", photometric="rgb")
    assert np.array_equal(np.asarray(read(path, table["rgb"])), colours)
    colours[0, 1:3] = 0
    path = write(tmp_path / "a.tif", colours, "0", photometric="rgb")
    message = message_of(read, path, table["rgb"])
    assert "declares 0 empty" in message and "2 values" in message and "Crop" in message
    ids = np.full(SIZE, 2, np.uint8)
    ids[1] = 0
    path = write(tmp_path / "s.tif", ids, "0")
    assert "no_data: 0" in message_of(read, path, table["semseg"])
    path = write(tmp_path / "s.tif", ids, "4")
    assert np.array_equal(read(path, table["semseg"]), ids)


@pytest.mark.parametrize("tag", ["0", "255", "3"])
def test_empty_pixels_of_true_label_maps_are_void(tag: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in range(2):
            save(tmp_path / split / f"rgb/{i}.png", np.zeros((*SIZE, 3), np.uint8))
            ids = np.tile(np.arange(20, dtype=np.uint8) % 5, (20, 1))
            ids[:3] = 255
            write(tmp_path / split / f"semseg/{i}.tif", ids, tag)
    argv = ["--data_path", str(tmp_path / "train"), "--eval_data_path", str(tmp_path / "val"),
            "--num_classes", "5", "--model", "multivit_nano", "--input_size", "32",
            "--patch_size", "8", "--device", "cpu"]  # fmt: skip
    job = SegmentationFinetuning(parse_config(SemsegConfig, argv), World(0, 1, torch.device("cpu")))
    dataset = job.eval_set("eval")
    assert dataset is not None
    counts = dataset.label_counts["segmentation"]
    empty = int(tag) if tag != "255" else None
    assert [int(c) for c in counts[:5]] == [0 if i == empty else 2 * 68 for i in range(5)]
    assert counts[255] == 2 * (60 if empty is None else 60 + 68)
    sample = dataset[SampleKey(0, 0)]
    assert not np.any(sample.images["segmentation"].numpy() == empty)  # type: ignore[union-attr]


def test_pretraining_and_doctor_take_the_tag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_scenes(tmp_path / "train", 4)
    for path in list(train.glob("depth/*/*.png")):
        values = np.linspace(1000, 9000, 1600).reshape(40, 40).astype(np.uint16)
        values[:8] = 65535
        path.unlink()
        write(path.with_suffix(".tif"), values, "65535")
    argv = tiny_run(train, tmp_path / "out", "--max_steps", "1", "--num_pictures", "0",
                    "--in_domains", "rgb-depth", "--out_domains", "rgb-depth")  # fmt: skip
    run_pretraining_multimae.main(argv)
    weights = tmp_path / "out/model.safetensors"
    assert read_spec(weights).inputs[1].no_data == 65535
    photo, depth = next(train.glob("rgb/*/*")), next(train.glob("depth/*/*"))
    encoded = MultiMAE.from_pretrained(weights).encode({"rgb": photo, "depth": depth}, pool="mean")
    assert encoded.isfinite().all()
    capsys.readouterr()
    assert doctor([str(train), "--modalities", "depth", "--out", str(tmp_path / "doctor")]) == 0
    (tmp_path / "c.yaml").write_text("modalities: {depth: {no_data: 0}}\n")
    assert doctor([str(train), "--modalities", "depth", "--out", str(tmp_path / "doctor"),
                   "--config", str(tmp_path / "c.yaml")]) == 1  # fmt: skip
    assert "declares 65535 empty" in capsys.readouterr().out
