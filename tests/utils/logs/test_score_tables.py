"""Evaluations on the console, the end of a run, colours of terminals."""

from __future__ import annotations

import io
import json
import math
import shlex
from pathlib import Path

import pytest

from multimae.specs.errors import UserError, coloured, print_error
from utils.config.options import LogOptions
from utils.logs.known_metrics import goal_of, metrics_of
from utils.logs.logger import RunLogger
from utils.logs.paths import RunPaths
from utils.logs.score_tables import evaluation_lines, numerals
from utils.logs.summary import file_lines, summary_lines
from utils.tasks.classification import ClassificationFinetuning
from utils.tasks.depth_estimation import DepthFinetuning
from utils.tasks.segmentation import SegmentationFinetuning
from utils.tasks.taskonomy import TaskonomyFinetuning
from utils.training.state import Goal

SEMSEG = {"eval/mean_iou": 41.2, "eval/pixel_accuracy": 0.5, "eval/loss": 1.25}
DEPTH = {"eval/delta_1": 0.5, "eval/rel": 0.2, "eval/rmse": 1060.88}
TASKS = {"eval/l1/normal": 0.2, "eval/l1/edges": 0.4, "eval/l1": 0.3}
ROOMS = {
    **{"eval/rgb": 0.5, "trivial/rgb": 1.0, "eval/loss": 3.0, "trivial/loss": 2.0},
    **{"gain/rgb": 0.5, "gain/loss": -0.5, "gain": 0.0},
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(values: dict[str, float], goal: Goal | None, best: float | None) -> list[str]:
    return [" ".join(line.split()) for line in evaluation_lines(2.0, 6, values, goal, best)]


def test_evaluations_say_whether_they_are_the_best() -> None:
    goal = SegmentationFinetuning.goal
    title, heads, row = lines_of(SEMSEG, goal, 40.0)
    assert title == "evaluation after step 6 (epoch 2.00): best mean IoU so far"
    assert heads == "mean IoU (%) pixel accuracy (%) loss" and row == "41.20* 50.00 1.2500"
    title, _, row = lines_of(SEMSEG, goal, 50.0)
    assert title.endswith("best mean IoU so far is 50.00 %") and "*" not in row
    assert lines_of(DEPTH, DepthFinetuning.goal, 1000.0)[0].endswith("is 1,000.00 mm")
    assert lines_of(DEPTH, DepthFinetuning.goal, 1100.0)[2] == "50.00 0.2000 1,060.88*"


def test_modalities_and_tasks_have_a_line_each() -> None:
    # A modality named as a metric is still one.
    assert lines_of(ROOMS, Goal("gain"), 0.5)[3:] == [
        "masked loss baseline gain over the baseline (%)",
        "rgb 0.5000 1.0000 50.00",
        "loss 3.0000 2.0000 -50.00",
    ]
    assert lines_of(TASKS, None, None)[1:] == [
        "L1",
        "0.3000",
        "L1",
        "normal 0.2000",
        "edges 0.4000",
    ]
    columns = [
        line.rindex("0") for line in evaluation_lines(2.0, 6, TASKS, None, None) if "." in line
    ]
    assert len(set(columns[2:])) == 1


@pytest.mark.parametrize(
    ("values", "goal"),
    [
        (SEMSEG, SegmentationFinetuning.goal),
        (DEPTH, DepthFinetuning.goal),
        (TASKS, TaskonomyFinetuning.goal),
        (ROOMS, Goal("gain")),
        ({"eval/acc1": 1.0, "eval/acc5": 2.0, "eval/loss": 3.0}, ClassificationFinetuning.goal),
        ({"eval/map": 1.0, "eval/loss": 3.0}, Goal("eval/map")),
        ({"eval/mae": 1.0, "eval/rmse": 2.0, "eval/loss": 3.0}, Goal("eval/loss", False)),
    ],
)
def test_the_goal_is_found_from_the_metrics(values: dict[str, float], goal: Goal) -> None:
    found = goal_of(metrics_of(values))
    assert found is not None
    assert (found.key, found.higher_is_better) == (goal.metric, goal.higher_is_better)


def test_the_best_value_is_the_first_finite_one() -> None:
    loss, rank, baseline = metrics_of(["eval/loss", "eval/rankme", "trivial/rgb"])
    assert loss.best([math.nan, 3.0, 1.0, 1.0]) == 2 and rank.best([math.nan, 3.0, 1.0]) == 1
    assert loss.best([math.nan]) is None and baseline.best([1.0]) is None


def test_numbers_keep_four_digits() -> None:
    assert numerals([0.000123, 0.00001]) == ["0.0001230", "0.0000100"]
    assert numerals([1234.5, math.nan]) == ["1,234.50", "-"]


def test_the_end_names_score_epoch_files_and_next_command(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    rows = [{"kind": "eval", "epoch": e, **DEPTH, "eval/rmse": r} for e, r in ((1, 9.5), (2, 7.25))]
    paths.log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    goal = DepthFinetuning.goal
    assert list(summary_lines(paths, goal, 7.25, pretrained=False)) == [
        "best RMSE: 7.2500 mm after epoch 2"
    ]
    paths.checkpoints.mkdir()
    paths.pictures.mkdir()
    for path in (paths.model, paths.best):
        path.touch()
    tuned = list(summary_lines(paths, goal, None, pretrained=False))
    assert tuned[:3] == [
        f"weights: {paths.model}", f"best weights: {paths.best}", f"pictures: {paths.pictures}"
    ]  # fmt: skip
    assert f"multimae predict {paths.best} " in tuned[3]
    assert f"--finetune {paths.model}" in list(summary_lines(paths, goal, None, pretrained=True))[3]


def test_the_next_command_can_be_pasted(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "my run")
    paths.root.mkdir()
    paths.model.touch()
    for pretrained in (True, False):
        command = list(file_lines(paths, pretrained=pretrained))[-1].removeprefix("next: ")
        assert str(paths.model) in shlex.split(command.split(" (or ")[0])


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured("x", "red", Terminal()) == "\033[31mx\033[0m"
    assert coloured("x", "red", io.StringIO()) == "x"
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    print_error(UserError("bad"))
    assert stream.getvalue() == "\033[31merror:\033[0m bad\n"
    for name, value in (("TERM", "dumb"), ("NO_COLOR", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert coloured("x", "red", Terminal()) == "x"


@pytest.mark.parametrize(
    ("speed", "text"), [(0.0423, "0.0423 img/s"), (16.4, "16.4 img/s"), (1234.5, "1,234 img/s")]
)
def test_the_console_shows_three_digits_of_the_speed(
    speed: float, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = RunLogger(LogOptions(), "", {})
    logger.start_progress(10, 0)
    logger.train(1, 0.1, {"loss": 1.0, "images_per_s": speed, "data_wait": 0.0})
    assert f" {text}," in capsys.readouterr().out
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    logger.info("warning: few steps")
    logger.eval(6, 2.0, SEMSEG, SegmentationFinetuning.goal, None)
    out = stream.getvalue()
    assert "\033[33mwarning: \033[0mfew steps\n" in out
    assert [line for line in out.splitlines() if "\033[32m" in line][0].count("41.20*") == 1
