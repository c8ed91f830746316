"""The run planner matches the scripts and keeps the global batch."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import run_pretraining_multimae
from multimae.nn.layers import Block
from tests.support.image_folders import message_of
from tests.support.scenes import ON_CPU
from tests.utils.config.test_config_contract import YAMLS, script_of
from tools.plan_run import main
from tools.planner import advice as advising
from tools.planner import measurements
from tools.planner.advice import (
    Measurements,
    batch_sizes,
    best_batch,
    bottleneck_of,
    enough_workers,
)
from tools.planner.measurements import (
    LoopMeasurement,
    StepMeasurement,
    StepMeasurements,
    worker_counts,
)
from tools.planner.plan_options import PretrainPlan, read_plan_config
from tools.planner.planned_run import PlannedRun, build_run
from tools.planner.resources import kept_checkpoints
from utils.distributed.world import World

REPO = Path(__file__).parents[2]
ROOMS = REPO / "examples/rooms"
CPU = World(0, 1, torch.device("cpu"))


def rooms_run(*more: str) -> list[str]:
    """A configuration of the rooms with a model that takes no time."""
    return [
        *("--config", str(REPO / "cfgs/pretrain/rooms/smoke.yaml"), "--data_path", str(ROOMS)),
        *("--model", "pretrain_multimae_nano", "--warmup_epochs", "0", *ON_CPU),
        *("--decoder_dim", "32", "--epochs", "10", "--save_ckpt_freq", "4", "--batch_size", "4"),
        *more,
    ]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, dict[str, Any]]:
    """The table and the JSON of a plan."""
    threads = torch.get_num_threads()
    try:
        main(["--seconds", "1.5", *arguments])
    finally:
        torch.set_num_threads(threads)
    table, _, last = capsys.readouterr().out.strip().rpartition("\n")
    return table, json.loads(last)


@pytest.fixture(scope="module")
def run() -> PlannedRun:
    cfg = read_plan_config(rooms_run())
    return build_run(cfg, CPU)


def test_a_plan_of_pretraining(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--eval_data_path", str(ROOMS), "--output_dir", str(tmp_path / "run")]
    table, plan = planned(capsys, *rooms_run(*out, "--update_freq", "2"))
    options = plan["suggestion"]
    assert options["batch_size"] * options["update_freq"] == plan["global_batch"] == 8
    assert plan["lr"] == pytest.approx(1e-3 * 8 / 256)
    assert plan["total_steps"] == 10 and plan["train_images"] == 8
    assert plan["eta"] == pytest.approx(80 / plan["images_per_s"], abs=0.1)
    rates = [*plan["loader_images_per_s"].values(), *plan["threads_images_per_s"].values()]
    assert min(*rates, plan["images_per_s"]) > 0
    tried = [probe["batch_size"] for probe in plan["steps"]]
    assert tried == [1, 2, 4, 8][: len(tried)] != []  # as many as a busy machine has time for
    assert all(1e8 < probe["memory"] < 1e11 for probe in plan["steps"])
    for word in ("loader", "step", "together", "bottleneck", "suggestion", "time", "disk"):
        assert re.search(rf"^{word} ", table, re.MULTILINE), table
    assert not (tmp_path / "run").exists(), "nothing is written"
    # A real run writes the predicted number and size of checkpoints.
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    run_pretraining_multimae.main(rooms_run(*out, *flags, "--num_pictures", "0"))
    folder = tmp_path / "run/checkpoints"
    files = list(folder.glob("checkpoint-[0-9]*.pth"))
    assert (folder / "checkpoint-best.pth").exists()
    assert plan["checkpoints"] == len(files) == 3
    largest = max(file.stat().st_size for file in files)
    assert plan["checkpoint"] == pytest.approx(largest, rel=0.01)
    everything = sum(p.stat().st_size for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert 0.9 * everything < plan["disk"] < 2 * everything


def test_plans_measure_activation_checkpointing() -> None:
    finetuning = ["--config", str(REPO / "cfgs/finetune/rooms/cls.yaml"), "--finetune", ""]
    finetuning += ["--data_path", str(ROOMS), "--eval_data_path", str(ROOMS), *ON_CPU]
    for argv in (rooms_run(), [*finetuning, "--model", "multivit_nano", "--input_size", "32"]):
        task = build_run(
            read_plan_config([*argv, "--grad_checkpointing", "selective"]), CPU
        ).state.task
        blocks = [module for module in task.modules() if isinstance(module, Block)]
        assert blocks and all(block.recompute for block in blocks)


def test_a_plan_of_finetuning(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = ["--config", str(REPO / "cfgs/finetune/rooms/cls.yaml"), "--finetune", ""]
    paths = ["--data_path", str(ROOMS), "--eval_data_path", str(ROOMS), "--output_dir", "out"]
    more = ["--model", "multivit_nano", "--batch_size", "4", "--update_freq", "2", *ON_CPU]
    _, plan = planned(capsys, *config, *paths, *more, "--input_size", "32", "--model_ema")
    options = plan["suggestion"]
    assert options["batch_size"] * options["update_freq"] == plan["global_batch"] == 8
    assert plan["model"] == "multivit_nano" and plan["images_per_s"] > 0


@pytest.mark.parametrize("path", YAMLS)
def test_script_is_inferred_from_options(path: str) -> None:
    cfg = read_plan_config(["--config", str(REPO / path), "--seconds", "5"])
    assert isinstance(cfg, script_of(path)) and cfg.plan.seconds == 5


def test_ambiguous_options_need_script() -> None:
    message = message_of(read_plan_config, ["--model", "multivit_base"])
    assert "--script" in message and "semseg" in message
    cfg = read_plan_config(["--model", "multivit_base", "--script", "taskonomy"])
    assert type(cfg).__name__ == "TaskonomyPlan"
    assert "unknown flag" in message_of(read_plan_config, ["--blrr", "1"])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--global_batch", "7", "--processes", "2"], "7 is not divisible by 2 processes"),
        (["--global_batch", "64"], "8 images, fewer than one global batch of 64"),
        (["--warmup_steps", "500"], "warm-up"),
        (["--data_path", "nowhere"], "nowhere does not exist"),
    ],
)
def test_invalid_plans_are_errors(more: list[str], expected: str) -> None:
    assert expected in message_of(main, rooms_run("--seconds", "1", *more))


def test_batch_sizes_divide_the_batch_per_process() -> None:
    assert batch_sizes(256) == [2, 4, 8, 16, 32, 64, 128, 256]
    assert batch_sizes(18) == [1, 2, 3, 6, 9, 18]
    assert batch_sizes(7) == [1, 7]
    assert worker_counts(6) == [0, 1, 2, 4, 6] and worker_counts(1) == [0, 1]


def test_choices() -> None:
    tried = [StepMeasurement(1, 50.0, 1), StepMeasurement(2, 98.0, 2), StepMeasurement(4, 100.0, 4)]
    assert best_batch(tried).batch_size == 2
    rates = {0: 30.0, 1: 60.0, 2: 118.0, 4: 120.0}
    assert enough_workers(rates, needed=20) == 0
    assert enough_workers(rates, needed=45) == 1
    assert enough_workers(rates, needed=1000) == 2


def test_bottlenecks() -> None:
    memory = StepMeasurements([StepMeasurement(1, 50.0, 1), StepMeasurement(2, 98.0, 2)], "memory")
    fast, slow = LoopMeasurement(2, 98.0, 0.01), LoopMeasurement(2, 50.0, 0.5)
    cases = {
        "computing": Measurements({2: 500.0}, replace(memory, stopped=""), {}, fast),
        "memory": Measurements({2: 500.0}, memory, {}, fast),
        "data": Measurements({2: 500.0}, memory, {}, slow),
    }
    for name, measured in cases.items():
        assert bottleneck_of(measured, 98.0, 1).startswith(name)
    assert bottleneck_of(cases["computing"], 8 * 98.0, 8).startswith("data: 500 img/s")


def test_batch_sizes_stop_at_the_memory_limit(
    run: PlannedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an out-of-memory error, or earlier by linear extrapolation."""
    speed = {1: 10.0, 2: 20.0, 4: 40.0}
    used = iter([100, 200, 400, 800, 1600])
    monkeypatch.setattr(measurements, "memory_used", lambda device: next(used))
    monkeypatch.setattr(measurements, "memory_limit", lambda device: None)

    def step_rate(run: PlannedRun, batch_size: int, seconds: float) -> float:
        if batch_size > 4:
            raise torch.OutOfMemoryError("device is full")
        return speed[batch_size]

    monkeypatch.setattr(measurements, "step_rate", step_rate)
    steps = measurements.step_rates(run, [1, 2, 4, 8, 16], 60)
    assert [p.batch_size for p in steps.probes] == [1, 2, 4] and steps.stopped == "memory"
    used = iter([100, 200, 400])
    monkeypatch.setattr(measurements, "memory_limit", lambda device: 350)
    steps = measurements.step_rates(run, [1, 2, 4, 8, 16], 60)
    assert [p.batch_size for p in steps.probes] == [1, 2] and steps.stopped == "memory"
    used = iter([100, 200, 400])
    assert measurements.step_rates(run, [1, 2, 4], 0.1).stopped.count("--seconds")


def test_a_slow_disk_is_the_bottleneck(
    run: PlannedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import time

    from utils.data.batches import Sample
    from utils.data.dataset import MultiModalDataset
    from utils.data.samplers import SampleKey

    read = MultiModalDataset.__getitem__

    def slowly(self: MultiModalDataset, key: SampleKey) -> Sample:
        time.sleep(0.05)
        return read(self, key)

    monkeypatch.setattr(MultiModalDataset, "__getitem__", slowly)
    monkeypatch.setattr(advising, "available_cores", lambda: 1)
    table, plan = planned(capsys, *rooms_run("--num_threads", "1"))
    assert plan["bottleneck"] == "data" and plan["data_wait"] > 0.15
    assert plan["loader_images_per_s"]["0"] < 21
    assert plan["threads_images_per_s"] == {} and "num_threads" not in plan["suggestion"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 10, "save_ckpt_freq": 4}, 3),
        ({"epochs": 10, "save_ckpt_freq": 1, "keep_ckpts": 3}, 3),
        ({"epochs": 9, "save_ckpt_steps": 3}, 5),
        ({"epochs": 4, "save_ckpt_steps": 2}, 4),
        ({"epochs": 4, "max_steps": 5}, 1),
    ],
)
def test_checkpoint_count_matches_the_loop(
    options: dict[str, int], expected: int, run: PlannedRun, tmp_path: Path
) -> None:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    line = [*words, "--output_dir", str(tmp_path), "--eval_data_path", "none"]
    cfg = read_plan_config(rooms_run("--save_ckpt_freq", "20", *line))
    assert isinstance(cfg, PretrainPlan)
    planned = replace(run, cfg=cfg)
    assert kept_checkpoints(planned, planned.plan(4, 1, 1)) == expected
    run_pretraining_multimae.main(rooms_run("--save_ckpt_freq", "20", *line))
    assert len(list((tmp_path / "checkpoints").glob("*.pth"))) == expected
