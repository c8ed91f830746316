"""What each modality is worth: scores on every subset of a checkpoint's inputs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from multimae import MultiMAE
from multimae.specs.heads import HeadOptions, HeadSpec, LinearOptions
from multimae.specs.modalities import Modality, make_table, select
from multimae.specs.spec import ModelSpec
from multimae.weights.pretrained import save_model
from tests.support.scenes import NUM_CLASSES, write_scenes
from tools.modality_report import main
from tools.report.heatmap import Cell, HeatMap, heat_maps, level_colour
from tools.subset_report.finetuned import downstream_report
from tools.subset_report.pretrained_subsets import reconstruction_report
from tools.subset_report.scores import drops, mean_score, subsets
from utils.logs.errors import UserError

TABLE = make_table({"semseg": {"num_classes": NUM_CLASSES}, "depth": {"normalization": "robust"}})
INPUTS = tuple(select(TABLE, ["rgb", "depth", "semseg"]))
SUBSETS = 7


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 6)


def model_with(**changes: object) -> MultiMAE:
    torch.manual_seed(0)
    spec = ModelSpec(
        "pretrain_multimae_nano",
        INPUTS,
        (*INPUTS, TABLE["norm_rgb"]),
        patch_size=8,
        image_size=32,
    )
    spec = dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, dim=32, num_heads=4))
    return MultiMAE.from_spec(dataclasses.replace(spec, **changes)).eval()  # type: ignore[arg-type]


def test_every_subset_once_small_ones_first() -> None:
    found = subsets(["a", "b", "c"])
    assert len(found) == len(set(found)) == SUBSETS
    assert found[0] == ("a",) and found[-1] == ("a", "b", "c")
    assert [len(s) for s in found] == sorted(len(s) for s in found)


def test_a_pretrained_model_is_scored_on_every_subset(scenes: Path) -> None:
    report = reconstruction_report(model_with(), "w", scenes, batch_size=4)
    whole, masked = report.matrices
    assert report.samples == 6 and len(masked.rows) == SUBSETS
    # All inputs given leave nothing to predict.
    assert len(whole.rows) == SUBSETS - 1
    assert whole.rows[("rgb",)]["rgb"] is None and whole.rows[("rgb",)]["norm_rgb"] is None
    scores = [s for row in masked.rows.values() for s in row.values()]
    assert all(s is not None and math.isfinite(s.value) and s.share for s in scores)
    assert set(report.drops) == {"rgb", "depth", "semseg"}
    alone = reconstruction_report(model_with(), "w", scenes, batch_size=1).matrices[1]
    for subset, row in masked.rows.items():
        for name, score in row.items():
            other = alone.rows[subset][name]
            assert score is not None and other is not None
            assert score.value == pytest.approx(other.value, rel=1e-4)


def test_what_is_hidden_does_not_matter(scenes: Path, tmp_path: Path) -> None:
    """The loss of depth from rgb and labels alone is the same whatever depth's own files hold."""
    model = model_with()
    row = reconstruction_report(model, "w", scenes).matrices[1].rows[("rgb",)]
    truth = model.spec.inputs[1]
    with torch.no_grad():
        model.input_adapters[truth.name].proj.weight.normal_()  # type: ignore[union-attr]
    again = reconstruction_report(model, "w", scenes).matrices[1].rows
    assert again[("rgb",)] == row and again[("depth",)] != row


def test_drops_say_how_much_worse() -> None:
    report_rows = {
        ("a",): {"loss": mean_score(torch.tensor([3.0])), "iou": mean_score(torch.tensor([10.0]))},
        ("b",): {"loss": mean_score(torch.tensor([2.0])), "iou": mean_score(torch.tensor([50.0]))},
        ("a", "b"): {
            "loss": mean_score(torch.tensor([2.0])),
            "iou": mean_score(torch.tensor([40.0])),
        },
    }
    from tools.subset_report.scores import Matrix

    matrix = Matrix("m", "T", "n", ("loss", "iou"), report_rows, frozenset({"loss"}))
    found = drops(matrix, ("a", "b"))
    assert found["b"]["loss"].value == 1.0 and found["b"]["loss"].share == 0.5  # type: ignore
    assert found["b"]["iou"].value == 30.0  # type: ignore[union-attr]
    assert found["a"]["iou"].value == -10.0  # type: ignore[union-attr]


def test_a_fine_tuned_model_is_scored_on_its_task(scenes: Path) -> None:
    target = Modality(
        "segmentation", "labels", num_classes=NUM_CLASSES, folder="semseg", loss="cross_entropy",
        interpolation="nearest", plot="labels",
    )  # fmt: skip
    options = HeadOptions("convnext", ("rgb",), dim=64, depth=1)
    places = tuple("ab")
    rooms = dataclasses.replace(target, name="cls", num_classes=2, class_names=places)
    heads = (
        HeadSpec("semseg", target, NUM_CLASSES, options),
        HeadSpec("depth", TABLE["depth"], 1, options, "mm"),
        HeadSpec("cls", rooms, 2, LinearOptions()),
    )
    model = model_with(
        name="multivit_nano", inputs=INPUTS[:2], outputs=(), heads=heads, resize_mode="pad",
        padding_class=True,
    )  # fmt: skip
    report = downstream_report(model, "w", scenes)
    (matrix,) = report.matrices
    assert list(matrix.rows) == [("rgb",), ("depth",), ("rgb", "depth")]
    for row in matrix.rows.values():
        assert set(row) >= {"semseg mean_iou", "depth rmse", "cls accuracy"}
        assert all(s is not None and math.isfinite(s.value) for s in row.values())
    assert matrix.rows[("rgb",)] != matrix.rows[("depth",)]
    assert {"depth rmse", "depth mae"} == matrix.falls


def test_the_command_writes_table_json_and_picture(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_with(inputs=INPUTS[:2], outputs=INPUTS[:2])
    weights = tmp_path / "model.safetensors"
    save_model(model.state_dict(), model.spec, weights)
    files = ["--json", str(tmp_path / "r/x.json"), "--picture", str(tmp_path / "r/x.png")]
    main([str(weights), str(scenes), *files, "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "rgb + depth" in printed and "Worse when one is missing" in printed
    content = json.loads((tmp_path / "r/x.json").read_text())
    assert set(content["masked"]["scores"]) == {"rgb", "depth", "rgb-depth"}
    assert content["given_whole"]["scores"]["rgb"]["rgb"] is None
    assert content["drop"]["rgb"]["depth"]["value"] == pytest.approx(
        content["masked"]["scores"]["depth"]["depth"]["value"]
        - content["masked"]["scores"]["rgb-depth"]["depth"]["value"]
    )
    assert (tmp_path / "r/x.png").stat().st_size > 1000


@pytest.mark.parametrize("visible", ["0", "1", "-2"])
def test_shares_that_leave_nothing_are_refused(scenes: Path, tmp_path: Path, visible: str) -> None:
    model = model_with()
    save_model(model.state_dict(), model.spec, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="share between 0 and 1"):
        main([str(tmp_path / "m.safetensors"), str(scenes), f"--visible={visible}"])


def test_heat_maps_show_levels() -> None:
    cells = ((Cell(0.1, "0.1"), Cell(math.nan, "given")),)
    one = HeatMap("Title", "note", ("a", "b"), ((True, False),), cells)
    picture = np.asarray(heat_maps([one], ["rgb", "depth"]))
    assert (picture == level_colour(0.1)).all(axis=-1).sum() > 1000
    assert level_colour(1.0) != level_colour(2.0) == level_colour(3.0)
