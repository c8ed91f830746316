"""Evaluation of a checkpoint on every subset of its inputs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from multimae import MultiMAE
from multimae.specs.errors import UserError
from multimae.specs.heads import HeadOptions, HeadSpec, LinearOptions
from multimae.specs.modalities import Modality, make_table, select
from multimae.specs.spec import ModelSpec
from multimae.weights.pretrained import save_model
from tests.support.scenes import NUM_CLASSES, write_scenes
from tools.modality_report import main
from tools.pack.packing import PackOptions, copy_loose_files, write_packs
from tools.pack.sources import list_images
from tools.subset_report.finetuned import downstream_report
from tools.subset_report.pretrained_subsets import reconstruction_report
from tools.subset_report.report_picture import report_figure
from tools.subset_report.scores import Matrix, Report, drops, mean_score, subsets

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


def test_subsets_are_unique_and_sorted_by_size() -> None:
    found = subsets(["a", "b", "c"])
    assert len(found) == len(set(found)) == SUBSETS
    assert found[0] == ("a",) and found[-1] == ("a", "b", "c")
    assert [len(s) for s in found] == sorted(len(s) for s in found)


def test_pretrained_model_is_evaluated_on_every_subset(scenes: Path) -> None:
    report = reconstruction_report(model_with(), "w", scenes, batch_size=4)
    absent, masked = report.matrices
    assert report.samples == 6 and len(masked.rows) == SUBSETS
    # With all inputs no modality is absent.
    assert len(absent.rows) == SUBSETS - 1
    assert absent.rows[("rgb",)]["rgb"] is None and absent.rows[("rgb",)]["norm_rgb"] is None
    scores = [s for row in masked.rows.values() for s in row.values()]
    assert all(s is not None and math.isfinite(s.value) and s.share for s in scores)
    assert set(report.drops) == {"rgb", "depth", "semseg"}
    alone = reconstruction_report(model_with(), "w", scenes, batch_size=1).matrices[1]
    for subset, row in masked.rows.items():
        for name, score in row.items():
            other = alone.rows[subset][name]
            assert score is not None and other is not None
            assert score.value == pytest.approx(other.value, rel=1e-4)


def test_removed_inputs_do_not_change_the_scores(scenes: Path, tmp_path: Path) -> None:
    """Losses from rgb alone do not depend on the depth adapter."""
    model = model_with()
    row = reconstruction_report(model, "w", scenes).matrices[1].rows[("rgb",)]
    truth = model.spec.inputs[1]
    with torch.no_grad():
        model.input_adapters[truth.name].proj.weight.normal_()  # type: ignore[union-attr]
    again = reconstruction_report(model, "w", scenes).matrices[1].rows
    assert again[("rgb",)] == row and again[("depth",)] != row


def test_drop_is_positive_if_the_metric_gets_worse() -> None:
    report_rows = {
        ("a",): {"loss": mean_score(torch.tensor([3.0])), "iou": mean_score(torch.tensor([10.0]))},
        ("b",): {"loss": mean_score(torch.tensor([2.0])), "iou": mean_score(torch.tensor([50.0]))},
        ("a", "b"): {
            "loss": mean_score(torch.tensor([2.0])),
            "iou": mean_score(torch.tensor([40.0])),
        },
    }
    matrix = Matrix("m", "T", "n", ("loss", "iou"), report_rows, frozenset({"loss"}))
    found = drops(matrix, ("a", "b"))
    assert found["b"]["loss"].value == 1.0 and found["b"]["loss"].share == 0.5  # type: ignore
    assert found["b"]["iou"].value == 30.0  # type: ignore[union-attr]
    assert found["a"]["iou"].value == -10.0  # type: ignore[union-attr]


def test_fine_tuned_model_is_evaluated_on_its_task(scenes: Path, tmp_path: Path) -> None:
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
    packed = tmp_path / "packed"
    write_packs(list_images(scenes), scenes, packed, PackOptions(), workers=1)
    copy_loose_files(scenes, packed)
    assert downstream_report(model, "w", packed).matrices == report.matrices


@pytest.mark.parametrize(("predicts", "fact"), [("class", "'a' is no class"), ("multi", "multi")])
def test_labels_of_a_file_are_not_reported(predicts: str, fact: str, scenes: Path) -> None:
    kinds = Modality(
        "cls", "labels", num_classes=2, class_names=("x", "y"), loss="cross_entropy",
        interpolation="nearest",
    )  # fmt: skip
    head = HeadSpec("cls", kinds, 2, LinearOptions(predicts=predicts))  # type: ignore[arg-type]
    model = model_with(
        name="multivit_nano", inputs=INPUTS[:2], outputs=(), heads=(head,), resize_mode="crop"
    )
    with pytest.raises(UserError, match=fact) as caught:
        downstream_report(model, "w", scenes)
    assert "--eval" in str(caught.value)


def test_the_command_writes_table_json_and_picture(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_with(inputs=INPUTS[:2], outputs=INPUTS[:2])
    weights = tmp_path / "model.safetensors"
    save_model(model.state_dict(), model.spec, weights)
    files = ["--json", str(tmp_path / "r/x.json"), "--picture", str(tmp_path / "r/x.png")]
    main([str(weights), str(scenes), *files, "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "rgb + depth" in printed and "when one input is removed" in printed
    content = json.loads((tmp_path / "r/x.json").read_text())
    assert set(content["masked"]["scores"]) == {"rgb", "depth", "rgb-depth"}
    assert content["given_whole"]["scores"]["rgb"]["rgb"] is None
    assert content["drop"]["rgb"]["depth"]["value"] == pytest.approx(
        content["masked"]["scores"]["depth"]["depth"]["value"]
        - content["masked"]["scores"]["rgb-depth"]["depth"]["value"]
    )
    assert (tmp_path / "r/x.png").stat().st_size > 1000


@pytest.mark.parametrize("visible", ["0", "1", "-2"])
def test_invalid_visible_shares_are_refused(scenes: Path, tmp_path: Path, visible: str) -> None:
    model = model_with()
    save_model(model.state_dict(), model.spec, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="share between 0 and 1"):
        main([str(tmp_path / "m.safetensors"), str(scenes), f"--visible={visible}"])


def test_heat_maps_are_coloured_by_loss_over_baseline_or_by_rank() -> None:
    low, high = (mean_score(torch.tensor([v]), baseline=2.0) for v in (1.0, 3.0))
    losses = Matrix(
        "m", "Loss", "note", ("rgb", "depth"),
        {("rgb",): {"rgb": None, "depth": low}, ("depth",): {"rgb": high, "depth": None}},
        frozenset({"rgb", "depth"}),
    )  # fmt: skip
    ious = [mean_score(torch.tensor([v])) for v in (20.0, 50.0, 60.0)]
    names = [("rgb",), ("depth",), ("rgb", "depth")]
    metrics = Matrix(
        "n", "IoU", "", ("iou",), {n: {"iou": s} for n, s in zip(names, ious, strict=True)}
    )
    figure = report_figure(Report("w", "data", 1, ("rgb", "depth"), (losses, metrics), {}))
    first, second = (ax.images[0].get_array() for ax in figure.axes[:2])
    np.testing.assert_array_equal(np.ma.filled(first, np.nan), [[np.nan, 0.5], [1.5, np.nan]])
    np.testing.assert_allclose(second[:, 0], [1.0, 0.25, 0.0])
    assert {"1.00  (50%)", "3.00  (150%)", "input"} == {
        t.get_text() for t in figure.axes[0].texts[:4]
    }
