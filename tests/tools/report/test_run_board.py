"""The page of many runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from multimae.specs.errors import UserError
from tools.report.board import MAX_POINTS
from tools.run_board import main
from utils.logs.paths import RunPaths


def make_run(folder: Path, ious: list[float], lr: float, steps: int = 10, **options: Any) -> None:
    paths = RunPaths(folder)
    paths.pictures.mkdir(parents=True)
    rows: list[dict[str, object]] = [
        {"kind": "train", "step": s, "loss": 2.0, "lr": lr, "images_per_s": 0.0423}
        for s in range(1, steps + 1)
    ]
    rows += [
        {"kind": "eval", "step": 5 * i, "epoch": float(i), "eval/mean_iou": iou, "eval/loss": 1.0}
        for i, iou in enumerate(ious, start=1)
    ]
    paths.log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"lr": lr, "epochs": 2, "output_dir": str(folder), "hflip": True, **options}
    paths.config.write_text(json.dumps(given))
    for step in (5, 10):
        Image.new("RGB", (8, 8)).save(paths.picture("predictions_eval", step))


def page_of(tmp_path: Path, *runs: Path) -> str:
    out = tmp_path / "board.html"
    main([*map(str, runs), "--out", str(out)])
    return out.read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_a_page_of_two_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/low", [10.0, 9.0], lr=0.1)
    make_run(tmp_path / "runs/high", [5.0, 12.5], lr=0.2, steps=2000)
    make_run(tmp_path / "runs/high/previous-1", [99.0], lr=0.3)
    page = page_of(tmp_path, tmp_path / "runs")
    data = data_of(page)
    assert [run["name"] for run in data["runs"]] == ["high", "low"]
    assert "lr=0.2" in data["runs"][0]["text"] and "hflip=on" in data["runs"][0]["text"]
    rows = re.findall(r'<tr data-of="(\d)">(.*?)</tr>', page)
    assert [run for run, _ in rows] == ["0", "1"]  # the best first
    scores = [re.findall(r'data-value="([^"]*)"', cells)[:3] for _, cells in rows]
    assert scores == [["high", "12.5", "2.0"], ["low", "10.0", "1.0"]]
    assert "0.0423</td>" in page
    panels = {panel["title"]: panel for panel in data["panels"]}
    curve = panels["IoU and accuracy (%)"]["curves"][1]
    assert (curve["run"], curve["x"], curve["y"]) == (1, [5.0, 10.0], [10.0, 9.0])
    assert len(panels["learning rate"]["curves"][0]["x"]) == MAX_POINTS
    differing = re.findall(r'<th scope="row">(\w+)</th><td[^>]*>(.*?)<', page)
    assert differing == [("lr", "0.2")]
    assert page.count("<figcaption>") == 2 and "predictions_eval, step 10<" in page


def test_the_page_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    make_run(tmp_path / "a<b", [1.0], lr=0.1, note="</script><b>")
    page = page_of(tmp_path, tmp_path / "a<b")
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,20})", page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert "default-src 'none'" in page
    assert "a<b" not in page.replace("a\\u003cb", "")
    assert data_of(page)["runs"][0]["name"] == "a<b"
    assert "<b>" not in page


def test_runs_that_cannot_be_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "good", [1.0], lr=0.1)
    (tmp_path / "new").mkdir()
    RunPaths(tmp_path / "new").log.write_text("")
    page = page_of(tmp_path, tmp_path)
    assert len(data_of(page)["runs"]) == 1
    assert "new" in capsys.readouterr().err
    with pytest.raises(UserError, match="nowhere"):
        main([str(tmp_path / "nowhere")])
