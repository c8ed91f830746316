"""Photos on the demo page: pseudo-labels, and predictions of heads of every kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multimae import save_model
from multimae.specs.errors import UserError
from multimae.specs.heads import HeadSpec, LinearOptions
from tests.multimae.inference.test_tiles import DENSE, HEIGHT, LABELS, model
from tests.support.image_folders import save
from tests.tools.labelling.test_pseudo_label import depth_anything, mask2former
from tools import demo_app
from tools.app.api import Api

KITCHEN = "kitchen/000038"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name a tiny depth model, and a segmenter with the classes of the rooms."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    depth, classes = depth_anything(root / "depth"), mask2former(root / "classes", 41)
    return ["--depth_model", str(depth), "--seg_model", str(classes)]


def photo(api: Api, folder: Path, *size: int) -> str:
    """Id of an uploaded photo."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return str(api.upload(save(folder / "mine.png", pixels), "rgb", "")["scene"])


def test_a_photo_gets_depth_and_labels(models: list[str], tmp_path: Path) -> None:
    api = demo_app.load(demo_app.parse(models))
    plain = photo(api, tmp_path, 96, 128)
    added = api.label({"scene": plain})
    assert added["problems"] == [] and added["scene"] != plain
    scene = api.scenes.get(added["scene"])
    depth, semseg = (np.asarray(scene.pixels[name]) for name in ("depth", "semseg"))
    assert depth.shape == semseg.shape == (96, 128)
    assert depth.dtype == np.uint16 and depth.min() == 0 and depth.max() == 65535
    assert semseg.max() < 41
    answer = api.fill({"scene": added["scene"]})
    assert answer["files"]["rgb"] == "mine.png" and "predicted" in answer["files"]["depth"]
    assert all("truth" in row["pictures"] for row in answer["rows"].values())
    with pytest.raises(UserError, match="has all"):
        api.label({"scene": added["scene"]})


def test_a_model_that_does_not_fit_is_told(models: list[str], tmp_path: Path) -> None:
    wrong = mask2former(tmp_path / "coco", 133)
    api = demo_app.load(demo_app.parse([*models[:2], "--semseg_model", str(wrong)]))
    added = api.label({"scene": photo(api, tmp_path, 64, 64)})
    assert set(api.scenes.get(added["scene"]).pixels) == {"rgb", "depth"}
    (problem,) = added["problems"]
    assert str(wrong) in problem and "41 classes" in problem
    api = demo_app.load(demo_app.parse(["--depth_model", str(tmp_path / "nothing")]))
    with pytest.raises(UserError, match="--depth_model .*nothing"):
        api.label({"scene": photo(api, tmp_path, 64, 64)})
    depth = np.zeros((64, 64), np.uint16)
    alone = api.upload(save(tmp_path / "depth.png", depth), "depth", "")["scene"]
    with pytest.raises(UserError, match="from a photo"):
        api.label({"scene": alone})


def test_heads_of_every_kind(tmp_path: Path) -> None:
    names = replace(LABELS, class_names=("a", "b", "c", "d", "e"))
    count = replace(HEIGHT, name="count", class_names=("trees",))
    heads = (
        HeadSpec("semseg", names, 5, DENSE),
        HeadSpec("height", replace(HEIGHT, plot="scalar"), 1, DENSE, "m", 0.001),
        HeadSpec("kind", names, 5, LinearOptions()),
        HeadSpec("count", count, 1, LinearOptions(predicts="number")),
    )
    built = model(*heads)
    path = tmp_path / "m.safetensors"
    save_model(built.state_dict(), built.spec, path)
    shipped = str(demo_app.REPO / "weights" / demo_app.WEIGHTS[0])
    api = demo_app.load(demo_app.parse(["--weights", str(path), shipped]))
    scene = photo(api, tmp_path, 40, 64)
    rows = {row["name"]: row for row in api.predict({"scene": scene, "point": [1, 0]})["rows"]}
    pixels: Any = api.scenes.get(scene).pixels["rgb"]
    expected: Any = built.predict(pixels)

    assert set(rows["height"]["pictures"]) == {"image", "prediction"}
    value = expected["height"].values[0, -1]
    assert rows["height"]["numbers"][0]["value"] == f"{value:.2f} m"
    assert all(rows["height"]["scales"][0][end].endswith(" m") for end in ("low", "high"))
    corner = int(expected["semseg"].ids[0, -1])
    assert rows["semseg"]["bars"][0]["name"] == names.class_names[corner]
    assert [bar["name"] for bar in rows["kind"]["bars"]] == list(expected["kind"].names)
    assert sum(bar["share"] for bar in rows["kind"]["bars"]) == pytest.approx(1)
    number = float(expected["count"].values[0])
    assert rows["count"]["numbers"] == [{"name": "trees", "value": f"{number:.4g}"}]
    assert api.fill({"scene": scene})["has"] == ["rgb"]  # the pre-trained model fills in
