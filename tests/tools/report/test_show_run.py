"""The evaluations of a run as text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.show_run import MAX_ROWS, main
from utils.logs.paths import RunPaths


def write(folder: Path, *evaluations: dict[str, float]) -> Path:
    rows = [
        {"kind": "eval", "step": 5 * i, "epoch": float(i), **values}
        for i, values in enumerate(evaluations, start=1)
    ]
    RunPaths(folder).log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main([str(folder)]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def pretraining(loss: float) -> dict[str, float]:
    gain = 1 - loss / 2
    return {"eval/x": loss, "trivial/x": 2.0, "gain/x": gain, "gain": gain}


def test_pretraining_shows_gains_over_time_and_the_last_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, pretraining(1.5), pretraining(0.5), pretraining(1.0))
    paths = RunPaths(tmp_path)
    paths.pictures.mkdir()
    paths.picture("reconstructions", 5).write_bytes(b"old")
    paths.picture("reconstructions", 15).write_bytes(b"new")
    lines = shown(tmp_path, capsys)
    assert (tmp_path / "reconstructions.png").read_bytes() == b"new"
    assert "best gain over the baseline: 75.00 % after epoch 2" in lines
    assert "2 10 75.00*" in lines and "3 15 50.00" in lines
    assert "x 1.0000 2.0000 50.00" in lines  # the last evaluation
    assert lines[lines.index("epoch step x") + 1 :][:3] == ["1 5 25.00", "2 10 75.00", "3 15 50.00"]


def test_fine_tuning_marks_the_best_of_every_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = {"eval/delta_1": 0.5, "eval/rmse": 900.0}
    write(tmp_path, low, {"eval/delta_1": 0.25, "eval/rmse": 950.0}, {"test/rmse": 990.0})
    lines = shown(tmp_path, capsys)
    assert "best RMSE: 900.00 mm after epoch 1" in lines
    assert "1 5 50.00* 900.00*" in lines and "2 10 25.00 950.00" in lines
    assert lines[lines.index("test after epoch 3") + 1 :][:2] == ["test RMSE", "990.00"]


def test_long_runs_are_thinned_out_but_for_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = [{"eval/loss": 1.0 + abs(i - 42)} for i in range(100)]
    lines = shown(write(tmp_path, *losses), capsys)
    assert "43 215 1.00*" in lines
    assert f"scores ({MAX_ROWS + 1} of 100), best marked *" in lines


@pytest.mark.parametrize("log", [None, '{"kind": "train", "step": 1, "loss": 1.0}\n'])
def test_without_evaluations_one_sentence_and_code_2(
    tmp_path: Path, log: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if log:
        RunPaths(tmp_path).log.write_text(log)
    assert main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert ("no evaluation" if log else "log.jsonl does not exist") in err
    assert len(err.splitlines()) == 1
