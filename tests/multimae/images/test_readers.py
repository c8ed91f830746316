"""Readers of all modalities, and files that do not match their spec."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multimae.images.folders import MultiModalFolder
from multimae.images.pixels import ImageError, storage_dtype
from multimae.images.preprocess import (
    pixels_with_value,
    statistics_of,
    to_model_input,
)
from multimae.images.readers import SUFFIXES, read, to_pixels
from multimae.images.views import View, cut
from multimae.inference.reconstruct import from_model_output
from multimae.specs.modalities import Modality, make_table
from multimae.specs.spec import ModelSpec
from tests.support.image_folders import message_of

SPECTRAL = Modality("spectral", num_channels=6, max_value=65535.0)
HEAT = make_table(
    {"heat": {"num_channels": 1, "storage": "float", "no_data": math.nan, "plot": "scalar",
              "interpolation": "nearest", "mean": 20, "std": 5}}
)["heat"]  # fmt: skip
MAPS = Modality(
    "maps", "labels", num_classes=4, no_data=255, loss="cross_entropy", interpolation="nearest"
)


def random(shape: tuple[int, ...], top: int = 60000) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape, dtype=np.uint16)


def test_many_channels_come_from_arrays_and_from_pages(tmp_path: Path) -> None:
    values = random((20, 30, 6))
    np.save(tmp_path / "a.npy", values)
    pages = [Image.fromarray(np.ascontiguousarray(values[..., c])) for c in range(6)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    for name in ("a.npy", "a.tiff"):
        pixels = read(tmp_path / name, SPECTRAL)
        assert isinstance(pixels, np.ndarray) and pixels.dtype == np.uint16
        np.testing.assert_array_equal(pixels, values)
        np.testing.assert_array_equal(to_pixels(tmp_path / name, SPECTRAL), values)
    halved = cut(values, SPECTRAL, View((20, 30), 0, 0, 20, 30), (10, 15))
    assert halved.shape == (6, 10, 15) and halved.dtype == torch.uint16


def test_floats_come_from_arrays_and_tiff(tmp_path: Path) -> None:
    values = np.linspace(-10, 40, 20 * 30, dtype=np.float32).reshape(20, 30)
    values[3, 4] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.save(tmp_path / "a.npy", values.astype(np.float64)[..., None])
    for name in ("a.tif", "a.npy"):
        pixels = read(tmp_path / name, HEAT)
        assert isinstance(pixels, np.ndarray) and pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, values)
    plain = make_table({"heat": {"num_channels": 1, "storage": "float"}})["heat"]
    assert "no_data: .nan" in message_of(read, tmp_path / "a.tif", plain)
    smooth = cut(np.nan_to_num(values), plain, View((20, 30), 0, 0, 20, 30), (10, 15))
    assert smooth.dtype == torch.float32 and smooth.min() < -5


def test_pixels_without_a_value_count_nowhere() -> None:
    raw = torch.full((2, 1, 8, 8), 30.0)
    raw[:, :, 0] = math.nan
    x = to_model_input(raw, HEAT)
    assert x[:, :, 0].eq(0).all() and x[:, :, 1:].eq(2).all()
    valid = pixels_with_value(raw, HEAT)
    assert valid is not None and (~valid).sum() == 16
    robust = make_table({"heat": {"normalization": "robust"}}, {"heat": HEAT})["heat"]
    raw[:, :, 1:] = torch.arange(56.0).view(7, 8)
    y = to_model_input(raw, robust)
    assert y.isfinite().all() and y[:, :, 0].eq(0).all()
    back = from_model_output(y, robust, statistics_of(raw, robust))
    torch.testing.assert_close(back[:, :, 1:], raw[:, :, 1:], rtol=1e-4, atol=1e-3)
    stored = torch.tensor([[[7, 500]]]).to(torch.uint16)
    depth = Modality("d", num_channels=1, max_value=65535.0, no_data=7, interpolation="nearest")
    assert to_model_input(stored[None], depth)[0, 0].tolist()[0][0] == 0


def test_labels_without_a_value_are_a_class_of_their_own(tmp_path: Path) -> None:
    ids = np.array([[0, 3], [255, 1]], np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(ids).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png", MAPS), ids)
    x = to_model_input(torch.from_numpy(ids)[None], MAPS)
    assert x.unique().tolist() == [0, 1, 3, 4]
    spec = ModelSpec("pretrain_multimae_nano", (MAPS,), patch_size=8, image_size=16)
    adapter = spec.keywords()["input_adapters"]["maps"]
    assert adapter.num_classes == 5 and adapter.emb_padding_idx == 4
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "b.png")
    assert "class id 9" in message_of(read, tmp_path / "b.png", MAPS)


def test_mirrored_vectors() -> None:
    table = make_table(
        {
            "n": {"storage": "float", "hflip_negate": [0], "interpolation": "nearest"},
            "m": {"hflip_negate": [0], "interpolation": "nearest", "no_data": 0},
        }
    )
    view = View((1, 2), 0, 0, 1, 2, flip=True)
    vectors = np.array([[[0.5, 1, 1], [0.25, 1, 1]]], np.float32)
    assert cut(vectors, table["n"], view, (1, 2))[0].tolist() == [[-0.25, -0.5]]
    stored = np.array([[[0, 1, 1], [55, 1, 1]]], np.uint8)
    assert cut(stored, table["m"], view, (1, 2))[0].tolist() == [[200, 0]]


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("a.exr", SPECTRAL, "no reader for '.exr' files"),
        ("pages.tiff", SPECTRAL, "has 2 pages"),
        ("four.npy", SPECTRAL, "is (H, W, 6), got (9, 9, 4)"),
        ("float.npy", SPECTRAL, "storage: float"),
        ("text.npy", HEAT, "holds numbers"),
        ("broken.npy", HEAT, "cannot be read"),
        ("objects.npy", HEAT, "cannot be read"),
        ("small.npy", HEAT, "smaller than one patch"),
        ("nothing.npy", HEAT, "is empty"),
        ("grey.png", SPECTRAL, ".npy"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, row: Modality, expected: str) -> None:
    path = tmp_path / name
    arrays = {
        "four.npy": random((9, 9, 4)),
        "float.npy": np.zeros((9, 9, 6), np.float32),
        "text.npy": np.full((9, 9), "x"),
        "objects.npy": np.full((9, 9), None, object),
        "small.npy": np.zeros((4, 4), np.float32),
        "nothing.npy": np.zeros((0, 4), np.float32),
    }
    page = Image.fromarray(random((9, 9)))
    if name in arrays:
        np.save(path, arrays[name], allow_pickle=True)
    elif name == "pages.tiff":
        page.save(path, save_all=True, append_images=[page])
    elif name == "grey.png":
        page.save(path)
    else:
        path.write_bytes(b"\x93NUMPY\x01\x00nonsense")
    message = message_of(read, path, row, 8)
    assert str(path) in message and f"'{row.name}'" in message and expected in message


def test_an_array_shorter_than_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((64, 64), np.float32))
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be read" in message_of(read, path, HEAT)


def test_folders_say_which_files_have_no_reader(tmp_path: Path) -> None:
    (tmp_path / "heat").mkdir()
    for name in ("a.exr", "b.exr", "c.h5"):
        (tmp_path / "heat" / name).write_bytes(b"x")
    message = message_of(MultiModalFolder, tmp_path, [HEAT])
    assert "no reader" in message and "2 '.exr'" in message and ".npy" in message
    assert {".npy", ".png", ".tiff", ".jpg"} <= SUFFIXES


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"no_data": 0}, "interpolation: nearest"),
        ({"no_data": math.nan, "interpolation": "nearest"}, "storage: float"),
        ({"plot_channels": [3]}, "plot_channels"),
        ({"kind": "labels", "storage": "float"}, "integers"),
        ({"loss_weight": -1}, "loss_weight"),
        ({"num_channels": 6, "plot": "normals"}, "num_channels: 3"),
        ({"chanels": 6}, "did you mean"),
    ],
)
def test_rows_that_contradict_themselves(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make_table({"new": fields})


def test_rows_travel_as_json() -> None:
    spec = ModelSpec("pretrain_multimae_nano", (HEAT, SPECTRAL, MAPS), (HEAT,))
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert storage_dtype(HEAT) == np.float32 and storage_dtype(SPECTRAL) == np.uint16


def test_model_inputs_need_statistics() -> None:
    row = Modality("a", num_channels=1, normalization="computed")
    with pytest.raises(ValueError, match="no statistics yet"):
        to_model_input(torch.zeros(1, 1, 4, 4), row)
    with pytest.raises(ImageError):
        read(Path("nowhere.npy"), HEAT)
