"""``no_data`` pixels: compared as stored, never interpolated, ignored in losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from multimae.images.arrays import array_pixels
from multimae.images.folders import MultiModalFolder
from multimae.images.preprocess import pixels_with_value, to_model_input
from multimae.images.readers import read
from multimae.specs.modalities import Modality, make_table
from tests.support.image_folders import message_of
from utils.data.statistics import measure


def dem(no_data: float | None, **fields: object) -> Modality:
    row = {"storage": "float", "num_channels": 1, "plot": "scalar", "interpolation": "nearest"}
    return make_table({"dem": {**row, "no_data": no_data, **fields}})["dem"]


@pytest.mark.parametrize("no_data", [-9999.0, -99.9, 1e-3, 1e20, -3.4028235e38, -1.797e308])
def test_no_data_that_float32_rounds_is_found_in_files_statistics_and_input(
    tmp_path: Path, no_data: float
) -> None:
    values = np.random.default_rng(0).normal(100, 2, (64, 64))
    values[:16] = no_data
    (tmp_path / "dem").mkdir()
    np.save(tmp_path / "dem/a.npy", values)
    row = dem(no_data)
    folder = MultiModalFolder(tmp_path, [row])
    raw = torch.from_numpy(np.asarray(folder.read(0, row)))[None, None]
    valid = pixels_with_value(raw, row)
    assert valid is not None and valid.float().mean() == 0.75
    assert not to_model_input(raw, row)[0, 0, :16].any()
    statistics = measure(folder, [row])["dem"]
    assert statistics.mean[0] == pytest.approx(100, abs=0.2)
    assert statistics.std[0] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("no_data", [-9999.0, -99.9, 0.1, 1e20, np.nan])
@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_no_data_that_float16_rounds_is_found(tmp_path: Path, kind: str, no_data: float) -> None:
    values = np.random.default_rng(0).normal(100, 2, (64, 64)).astype(np.float16)
    with np.errstate(over="ignore"):
        values[:16] = no_data
    file, row = tmp_path / f"a.{kind}", dem(no_data)
    if kind == "npy":
        np.save(file, values)
    else:
        import tifffile

        tag = (42113, "s", 0, f"{no_data:g}", True)
        tifffile.imwrite(file, values, extratags=[tag])
    raw = torch.from_numpy(np.asarray(read(file, row)))[None, None]
    valid = pixels_with_value(raw, row)
    assert valid is not None and valid.float().mean() == 0.75
    assert torch.equal(raw[valid], torch.from_numpy(values[16:].astype(np.float32)).flatten())


@pytest.mark.parametrize(
    ("no_data", "bad", "named"),
    [(0, np.nan, "NaN"), (0, np.inf, "infinite"), (np.nan, -np.inf, "infinite"),
     (None, np.nan, "NaN"), (-9999, 1e300, "infinite")],
)  # fmt: skip
def test_values_that_are_not_finite_are_refused_beside_no_data(
    no_data: float | None, bad: float, named: str
) -> None:
    values = np.ones((8, 8))
    values[0] = 1 if no_data is None else no_data
    values[3, 4] = bad
    message = message_of(array_pixels, values, "a.npy", dem(no_data))
    assert (
        "a.npy" in message
        and "'dem'" in message
        and f" 1 values that are not finite ({named})" in message
    )
    values[3, 4] = 2
    array_pixels(values, "a.npy", dem(no_data))


@pytest.mark.parametrize("no_data", [-1, 0.5])
def test_integers_cannot_hold_a_negative_or_fractional_no_data(no_data: float) -> None:
    with pytest.raises(ValueError, match=r"no_data: .* needs storage: float"):
        Modality("x", num_channels=1, interpolation="nearest", no_data=no_data)


def test_colours_with_no_data_are_not_jittered() -> None:
    assert not Modality("rgb", interpolation="nearest", no_data=0).is_photo
    assert Modality("rgb", interpolation="nearest").is_photo
