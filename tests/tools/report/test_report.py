"""Reading and plotting the logs of runs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from multimae.specs.errors import UserError
from tools.plot_run import main
from tools.report.curves import plot_runs
from tools.report.panels import main_panels, panels_of
from tools.report.run_log import Row, curve, read_log


def write_log(folder: Path, tail: str = "") -> Path:
    folder.mkdir()
    rows: list[dict[str, object]] = []
    for step in range(0, 100, 10):
        loss = 1.0 / (step + 1)
        rows.append({"kind": "train", "step": step, "loss": loss, "loss/rgb": loss, "lr": 1e-3})
    rows.append({"kind": "eval", "step": 90, "eval/rgb": 0.5, "trivial/rgb": 1.0})
    text = "\n".join(json.dumps(row) for row in rows) + tail
    (folder / "log.jsonl").write_text(text)
    return folder


def test_an_incomplete_last_line_is_ignored(tmp_path: Path) -> None:
    rows = read_log(write_log(tmp_path / "run", '\n{"kind": "tra'))
    assert len(rows) == 11
    steps, values = curve(rows, "train", "loss/rgb")
    assert steps.tolist() == list(range(0, 100, 10))
    assert values[1] == pytest.approx(1 / 11)


def test_curve_keeps_the_last_of_repeated_steps_and_drops_nonfinite_values() -> None:
    rows = [
        {"kind": "train", "step": 2, "loss": 1.0},
        {"kind": "train", "step": 1, "loss": 5.0},
        {"kind": "train", "step": 2, "loss": 3.0},
        {"kind": "train", "step": 3, "loss": math.nan},
        {"kind": "eval", "step": 4, "loss": 9.0},
    ]
    steps, values = curve(rows, "train", "loss")
    assert steps.tolist() == [1, 2] and values.tolist() == [5.0, 3.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}\nnonsense\n{}", "line 2: not JSON"), ("{}", "no train or eval")],
)
def test_invalid_logs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_log(tmp_path)


EVALUATIONS: dict[str, Row] = {
    "pretrain": {
        **{"eval/rgb": 0.5, "trivial/rgb": 1.0, "gain/rgb": 0.5, "gain": 0.5},
        **{"eval/loss": 3.0, "trivial/loss": 2.0, "gain/loss": -0.5},
    },
    "cls": {"eval/acc1": 50.0, "eval/acc5": 75.0, "eval/loss": 1.0},
    "semseg": {"eval/mean_iou": 4.0, "eval/pixel_accuracy": 0.5, "eval/loss": 2.0},
    "depth": {"eval/delta_1": 0.5, "eval/delta_2": 0.75, "eval/rel": 0.3, "eval/rmse": 900.0},
    "taskonomy": {"eval/l1/normal": 0.2, "eval/l1/edge": 0.4, "eval/l1": 0.3},
}
PANELS = {
    "pretrain": ("loss", "validation loss / baseline", "training loss by task", "learning rate"),
    "cls": ("loss", "accuracy (%)", "learning rate", "images per second"),
    "semseg": ("loss", "IoU and accuracy (%)", "learning rate", "images per second"),
    "depth": ("loss", "RMSE (mm)", "δ accuracy (%)", "relative error", "learning rate"),
    "taskonomy": ("loss", "L1", "training loss by task", "learning rate"),
}


def rows_of(task: str) -> list[Row]:
    parts = {"loss/a": 1.0, "loss/b": 2.0} if task in ("pretrain", "taskonomy") else {}
    values = {"loss": 1.5, **parts, "lr": 1e-3, "images_per_s": 9.0, "grad_norm": 1.0}
    train = [{"kind": "train", "step": step, **values} for step in range(1, 9)]
    tests = {"kind": "eval", "step": 8, "epoch": 2.0, "test/acc1": 10.0}
    evals = [
        {"kind": "eval", "step": s, "epoch": s / 4, **EVALUATIONS[task]} for s in (4, 8)
    ]  # fmt: skip
    return [*train, *evals, tests]


@pytest.mark.parametrize("task", EVALUATIONS)
def test_every_task_has_four_panels_with_curves(task: str) -> None:
    pytest.importorskip("matplotlib")
    panels = main_panels(panels_of({"run": rows_of(task)}))
    assert tuple(panel.title for panel in panels) == PANELS[task]
    fig = plot_runs({"run": rows_of(task)})
    drawn = [ax for ax in fig.axes if ax.axison]
    assert len(drawn) == len(panels) and all(ax.lines for ax in drawn)


def test_panels_divide_by_the_baseline_and_show_percent() -> None:
    runs = {task: rows_of(task) for task in EVALUATIONS}
    panels = {panel.title: panel for panel in panels_of(runs)}
    ratio = panels["validation loss / baseline"].curves
    assert {key: y.tolist() for key, (_, y) in ratio.items()} == {
        ("pretrain", "rgb"): [0.5, 0.5],
        ("pretrain", "loss"): [1.5, 1.5],
    }
    pixels = panels["IoU and accuracy (%)"].curves["semseg", "pixel accuracy"]
    assert pixels[1].tolist() == [50.0, 50.0] and pixels[0].tolist() == [4.0, 8.0]
    assert panels["L1"].curves["taskonomy", "mean"][1].tolist() == [0.3, 0.3]
    assert ("cls", "validation") in panels["loss"].curves
    assert len(panels["learning rate"].curves) == 5


def test_a_single_logged_step_is_a_visible_point() -> None:
    row: Row = {"kind": "train", "step": 4, "loss": 1.0, "loss/rgb": 1.0, "lr": 1e-3}
    figure = plot_runs({"run": [row]})
    markers = {line.get_marker() for axes in figure.axes for line in axes.lines}
    assert "o" in markers


def test_plots_of_one_and_of_several_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    a, b = write_log(tmp_path / "a"), write_log(tmp_path / "b")
    main([str(a)])
    main([str(a), str(b), "--out", str(tmp_path / "both.png")])
    for picture in (a / "loss.png", tmp_path / "both.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("missing", ["log", "matplotlib"])
def test_what_is_missing_is_a_user_error(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "nowhere"
    if missing == "matplotlib":
        write_log(run)
        for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    expected = {"log": "nowhere", "matplotlib": "matplotlib"}[missing]
    with pytest.raises(UserError, match=expected):
        main([str(run)])
