"""Every bit depth is read exactly or is an error."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from multimae.images.readers import read, read_fast, to_pixels
from multimae.specs.modalities import Modality, default_table, make_table
from tests.support.image_folders import message_of
from tests.support.png_files import png_bytes
from tools.pack.packing import pixels_to_store

MAPS = Modality(
    "maps", "labels", num_classes=16, loss="cross_entropy", interpolation="nearest", stride=1
)
TABLE = default_table()


def scalar(max_value: float, **fields: object) -> Modality:
    row = {"num_channels": 1, "interpolation": "nearest", "plot": "scalar"}
    return make_table({"x": {**row, "max_value": max_value, **fields}})["x"]


def low_bits(path: Path, bits: int) -> np.ndarray:
    values = np.arange(16 * 18).reshape(16, 18) % 2**bits
    path.write_bytes(png_bytes(values, bits))
    return values


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_ids_in_grey_png_of_few_bits_are_not_scaled(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "a.png"
    ids = low_bits(path, bits)
    np.testing.assert_array_equal(read(path, MAPS), ids)
    np.testing.assert_array_equal(read_fast(str(path), MAPS, 1, path.read_bytes()), ids)
    np.testing.assert_array_equal(to_pixels(Image.open(path), MAPS), ids)
    stored = pixels_to_store(path.read_bytes(), ".png", keep_jpeg=True)
    assert stored is None  # a pack keeps the file, as Pillow's values are scaled


def test_ids_in_tiff_of_few_bits_are_not_scaled(tmp_path: Path) -> None:
    ids = np.arange(16 * 18, dtype=np.uint8).reshape(16, 18) % 16
    tifffile.imwrite(tmp_path / "a.tif", ids, bitspersample=4, photometric="minisblack")
    np.testing.assert_array_equal(read(tmp_path / "a.tif", MAPS), ids)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_values_of_few_bits_follow_max_value(tmp_path: Path, bits: int) -> None:
    path, top = tmp_path / "a.png", 2**bits - 1
    values = low_bits(path, bits)
    np.testing.assert_array_equal(read(path, scalar(top)), values)
    np.testing.assert_array_equal(read(path, scalar(1, storage="float")), values)
    np.testing.assert_array_equal(read(path, scalar(255)), values * (255 // top))
    assert f"max_value: {top}" in message_of(read, path, TABLE["depth"])
    assert f"max_value: {top}" in message_of(read, path, scalar(255, no_data=0))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_are_read_or_refused(tmp_path: Path, channels: int) -> None:
    path, count = tmp_path / "a.png", 3 if channels > 2 else 1
    values = np.random.default_rng(0).integers(0, 4000, (20, 30, channels), dtype=np.uint16)
    if channels != count:
        values[..., -1] = 65535  # opaque
    path.write_bytes(png_bytes(values, 16))
    message = message_of(read, path, make_table({"x": {"num_channels": count}})["x"])
    assert str(path) in message and "16 bits" in message and "max_value" in message
    for fields in ({"max_value": 65535}, {"max_value": 4095}, {"storage": "float"}):
        row = make_table({"x": {"num_channels": count, **fields}})["x"]
        np.testing.assert_array_equal(
            np.asarray(read(path, row)).reshape(20, 30, count), values[..., :count]
        )
    all_bands = make_table({"x": {"num_channels": channels, "max_value": 65535}})["x"]
    np.testing.assert_array_equal(read(path, all_bands), values)
    assert pixels_to_store(path.read_bytes(), ".png", keep_jpeg=True) is None


def test_lossy_files_hold_neither_ids_nor_no_data(tmp_path: Path) -> None:
    Image.new("L", (16, 16)).save(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.jpg").read_bytes())  # renamed
    Image.new("L", (16, 16)).save(tmp_path / "c.tif", compression="jpeg")
    for name in ("a.jpg", "b.png", "c.tif"):
        path = tmp_path / name
        for row in (MAPS, scalar(255, no_data=0)):
            assert "JPEG" in message_of(read, path, row) or name == "c.tif"
            assert "changes values" in message_of(read, path, row)
        assert np.asarray(read(path, scalar(255))).shape == (16, 16)
    Image.new("RGB", (16, 16)).save(tmp_path / "d.jpg")
    masked = Modality("rgb", interpolation="nearest", no_data=0)
    data = (tmp_path / "d.jpg").read_bytes()
    assert "changes values" in message_of(read_fast, "d.jpg", masked, 1, data)


def test_opened_and_loaded_images_agree(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((16, 16, 3), 7, np.uint8))
    data = io.BytesIO()
    image.save(data, "PNG")
    for candidate in (image, Image.open(data)):
        assert np.asarray(to_pixels(candidate, TABLE["rgb"])).max() == 7
