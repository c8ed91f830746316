"""The example of a time series in docs/MODALITIES.md."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

import run_pretraining_multimae
from multimae.images.readers import read
from multimae.specs.modalities import make_table
from multimae.weights.model_files import read_spec
from tests.support.scenes import tiny_run, write_scenes

REPO = Path(__file__).parents[3]
DATES, BANDS, SIDE = 3, 4, 40


def documented() -> dict[str, dict[str, object]]:
    text = (REPO / "docs/MODALITIES.md").read_text("utf-8")
    section = text.split("## Time series")[1]
    (block,) = re.findall(r"```yaml\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    modalities: dict[str, dict[str, object]] = yaml.safe_load(block)["modalities"]
    return modalities


def test_dates_are_channels_of_npy_and_multi_page_tiff(tmp_path: Path) -> None:
    declared = documented()
    series = make_table(declared)["series"]
    assert series.num_channels == DATES * BANDS
    write_scenes(tmp_path / "train", 8)
    photos = sorted((tmp_path / "train/rgb").rglob("*.jpg"))
    first = np.empty(0)
    for i, path in enumerate(photos):
        rng = np.random.default_rng(i)
        dates = [
            rng.integers(1000 * t, 1000 * t + 500, (SIDE, SIDE, BANDS), dtype=np.uint16)
            for t in range(DATES)
        ]
        name = path.relative_to(tmp_path / "train/rgb").with_suffix(".npy" if i % 2 else ".tif")
        target = tmp_path / "train/series" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        stacked = np.concatenate(dates, axis=-1)
        if i % 2:
            np.save(target, stacked)
        else:
            tifffile.imwrite(target, stacked.transpose(2, 0, 1), photometric="minisblack")
            assert len(tifffile.TiffFile(target).pages) == DATES * BANDS
        assert (np.asarray(read(target, series)) == stacked).all()
        first = stacked if i == 0 else first
    assert (first[..., 2 * BANDS] >= 2000).all() and (first[..., 2 * BANDS - 1] < 2000).all()
    config = tmp_path / "series.yaml"
    config.write_text(yaml.safe_dump({"modalities": declared}))
    domains = ("--in_domains", "rgb-series", "--out_domains", "rgb-series", "--epochs", "1")
    run = tiny_run(tmp_path / "train", tmp_path / "out", *domains)
    at = run.index("--modalities")
    run_pretraining_multimae.main([*run[:at], *run[at + 2 :], "--config", str(config)])
    trained = {m.name: m for m in read_spec(tmp_path / "out/model.safetensors").inputs}["series"]
    assert len(trained.mean) == DATES * BANDS
    by_date = np.array(trained.mean).reshape(DATES, BANDS).mean(axis=1)
    assert by_date == pytest.approx([0.025, 0.125, 0.225], abs=0.002)
