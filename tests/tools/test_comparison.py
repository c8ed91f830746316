"""Comparison plans: runs, statistics, report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.image_folders import message_of
from tools.compare.comparison import ComparisonRun, Gain, Metric, mean_and_std, read_comparison
from tools.results import main

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if flags.get("--lr") == "0":
    sys.exit("lr must not be 0")
out = pathlib.Path(flags["--output_dir"])
with (out / "log.jsonl").open("w") as file:
    for epoch in (1, 2):
        score = epoch * 10 + float(flags.get("--bonus", 0)) + int(flags["--seed"])
        score -= abs(float(flags.get("--rate", 0)))
        if "--finetune" in flags:
            score += len(pathlib.Path(flags["--finetune"]).read_text())
        row = {"kind": "eval", "step": epoch, "epoch": float(epoch), "eval/acc1": score}
        file.write(json.dumps(row) + "\\n")
(out / "model.safetensors").write_text(int(flags["--seed"]) * "x")
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "RESULTS.md").write_text(
        "# Results\n<!-- results: plan -->\nold\n<!-- results: plan -->\nend\n"
    )
    contents = {
        "size": "tiny",
        "output_dir": str(tmp_path / "runs-{size}"),
        "report": str(tmp_path / "RESULTS.md"),
        "picture": str(tmp_path / "images/results.png"),
        "seeds": [0, 1, 2],
        "common": {"epochs": 2},
        "starts": {"scratch": {"bonus": 0}, "pre-trained": {"bonus": 5}},
        "experiments": {
            "cls": {
                "title": "classes",
                "script": str(tmp_path / "script.py"),
                "config": "none.yaml",
                "metrics": [{"key": "eval/acc1", "title": "accuracy"}],
            }
        },
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(contents, sort_keys=False))
    return path


def test_runs_are_trained_once_and_reported(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", str(plan), "--jobs", "2"])
    assert "6 runs, 0 " in capsys.readouterr().out
    main(["run", str(plan)])
    assert "6 runs, 6 " in capsys.readouterr().out
    main(["report", str(plan)])
    report = (tmp_path / "RESULTS.md").read_text()
    assert "old" not in report and report.startswith("# Results") and report.endswith("end\n")
    row = next(line for line in report.splitlines() if line.startswith("| classes"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["classes", "accuracy ↑", "21.0 ± 1.0", "26.0 ± 1.0", "+5", "+5.0"]
    assert (tmp_path / "images/results.png").stat().st_size > 10_000


def change(plan: Path, **values: object) -> None:
    contents = yaml.safe_load(plan.read_text())
    plan.write_text(yaml.safe_dump({**contents, **values}, sort_keys=False))


def cells(report: Path) -> list[list[str]]:
    lines = [line for line in report.read_text().splitlines() if line.startswith(("| cl", "**"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_budgets_have_a_table_each(plan: Path, tmp_path: Path) -> None:
    long = {"options": {"bonus": 7}, "seeds": [1], "only": ["cls"]}
    never = {"options": {}, "only": []}
    change(plan, budgets={"short": {}, "long": long, "empty": {**never, "seeds": [9]}})
    main(["run", str(plan), "--budgets", "short", "long"])
    main(["report", str(plan)])
    report = tmp_path / "RESULTS.md"
    assert cells(report) == [
        ["**short**"],
        ["classes", "accuracy ↑", "21.0 ± 1.0", "26.0 ± 1.0", "+5", "+5.0"],
        ["**long**"],
        ["classes", "accuracy ↑", "28.0", "28.0", "+0", "–"],
    ]
    assert "long: seed 1 alone" in report.read_text()
    assert (tmp_path / "runs-tiny/cls/scratch/long/1/log.jsonl").is_file()
    assert "budget big. Known: short, long" in message_of(
        main, ["run", str(plan), "--budgets", "big"]
    )


def test_an_option_is_tuned_per_start(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(plan, tune={"option": "rate", "values": [3, -1, 2], "options": {"bonus": 0}})
    main(["run", str(plan)])
    assert "6 runs, 0 " in capsys.readouterr().out
    assert (tmp_path / "runs-tiny/tune/cls/pre-trained/-1/log.jsonl").is_file()
    main(["report", str(plan)])
    text = (tmp_path / "RESULTS.md").read_text()
    assert "rate is the best of 3, -1, 2" in text and "classes: -1, -1." in text
    (row,) = cells(tmp_path / "RESULTS.md")
    assert row[2:4] == ["20.0 ± 1.0", "25.0 ± 1.0"]


def test_starts_are_pretrained_once_per_seed(plan: Path, tmp_path: Path) -> None:
    script = str(tmp_path / "script.py")
    change(
        plan,
        pretraining={
            "script": script,
            "config": "none.yaml",
            "options": {"epochs": 2},
            "metrics": [{"key": "eval/acc1", "title": "gain"}],
        },
        starts={"base": {"pretrain": {}}, "other": {"pretrain": {"bonus": 1}, "bonus": 2}},
    )
    main(["run", str(plan)])
    run = tmp_path / "runs-tiny/pretrain/other/2/log.jsonl"
    assert '"eval/acc1": 23.0' in run.read_text()
    main(["report", str(plan)])
    (row,) = cells(tmp_path / "RESULTS.md")
    assert row[2:4] == ["22.0 ± 2.0", "24.0 ± 2.0"]  # seed s, from a model worth s


def test_interrupted_run_is_repeated(plan: Path) -> None:
    main(["run", str(plan), "--seeds", "1"])
    run = next(r for r in read_comparison(plan).runs(seeds=[1]) if r.start == "scratch")
    assert run.done() and run.scores() == {"eval/acc1": 21.0}
    log = run.folder / "log.jsonl"
    for left in (log.read_text().splitlines()[0] + "\n", ""):
        log.write_text(left)
        assert not run.done()


def test_size_and_further_options(plan: Path, tmp_path: Path) -> None:
    main(["run", str(plan), "--size", "small", "--seeds", "0", "--set", "bonus=30"])
    runs = read_comparison(plan, "small").runs(seeds=[0])
    assert [run.scores()["eval/acc1"] for run in runs] == [50.0, 50.0]
    assert (tmp_path / "runs-small").is_dir() and not (tmp_path / "runs-tiny").exists()


def test_failed_run_shows_the_end_of_its_log(plan: Path) -> None:
    contents = yaml.safe_load(plan.read_text())
    contents["common"]["lr"] = 0
    plan.write_text(yaml.safe_dump(contents))
    message = message_of(main, ["run", str(plan)])
    assert "cls/" in message and "lr must not be 0" in message and "console.txt" in message
    assert "expected OPTION=VALUE" in message_of(main, ["run", str(plan), "--set", "lr"])
    assert "experiment depth. Known: cls" in message_of(main, ["run", str(plan), "--only", "depth"])


def test_bad_plans(plan: Path) -> None:
    assert "no finished runs" in message_of(main, ["report", str(plan)])
    contents = yaml.safe_load(plan.read_text())
    Path(contents["report"]).write_text("# no marks\n")
    assert "needs two lines" in message_of(main, ["report", str(plan)])
    del contents["seeds"]
    contents["sedes"] = [1]
    plan.write_text(yaml.safe_dump(contents))
    message = message_of(main, ["report", str(plan)])
    assert "missing keys: seeds; unknown: sedes" in message


def test_gain_is_measured_in_pooled_deviations() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.normal(10, 1, 5).tolist(), rng.normal(14, 2, 5).tolist()
    gain = Gain.of(low, high, Metric("m", "m"))
    pooled = np.sqrt((np.var(low, ddof=1) + np.var(high, ddof=1)) / 2)
    assert gain.gain == pytest.approx(np.mean(high) - np.mean(low))
    assert gain.deviations == pytest.approx(gain.gain / pooled)
    worse = Gain.of(low, high, Metric("m", "m", higher_is_better=False))
    assert worse.gain == pytest.approx(-gain.gain)
    assert mean_and_std([3.0])[0] == 3.0 and np.isnan(mean_and_std([3.0])[1])


@pytest.mark.parametrize(
    "path", sorted((ROOT / "cfgs/results").glob("*.yaml")), ids=lambda p: p.name
)
def test_every_plan_gives_commands_that_parse(path: Path, tmp_path: Path) -> None:
    from utils.config.cls_options import ClsConfig
    from utils.config.depth_options import DepthConfig
    from utils.config.parse import parse_config
    from utils.config.pretrain_options import PretrainConfig
    from utils.config.semseg_options import SemsegConfig
    from utils.config.taskonomy_options import TaskonomyConfig

    configs = {
        "run_pretraining_multimae.py": PretrainConfig,
        "run_finetuning_cls.py": ClsConfig,
        "run_finetuning_semseg.py": SemsegConfig,
        "run_finetuning_depth.py": DepthConfig,
        "run_finetuning_taskonomy.py": TaskonomyConfig,
    }
    comparison = read_comparison(path)
    tuning, pretraining = comparison.tuning_runs(), comparison.pretraining_runs()
    for run in [*pretraining, *tuning, *comparison.runs()]:
        assert isinstance(run, ComparisonRun)
        script, *flags = run.arguments()
        assert (ROOT / script).is_file()
        cfg = parse_config(configs[script], flags)  # type: ignore[type-var]
        assert cfg.runtime.seed == run.seed  # type: ignore[attr-defined]
    assert len(comparison.seeds) >= 2 and len(comparison.starts) >= 2
