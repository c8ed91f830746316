"""Reading and plotting the logs of runs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from multimae.specs.errors import UserError
from tools.plot_run import main
from tools.report.run_log import curve, read_log


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
