"""What a run says about its speed: MFU, memory, speed per device; and the profile of its steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import run_pretraining_multimae
from tests.support.scenes import tiny_run, write_scenes
from tests.utils.tasks.test_pretraining import rows
from tests.utils.training.test_global_batch import CASES
from utils.config.options import LogOptions
from utils.distributed.world import World
from utils.logs.efficiency import Efficiency, count_flops, known_peak, training_flops
from utils.logs.profiling import profiled_steps
from utils.tasks.base import StepPosition

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["standardized depth", "void", "label smoothing"])
def test_operations_are_those_of_a_real_step(name: str) -> None:
    """Counted without computing, and without recomputed activations."""
    import copy

    task, full = CASES[name]()
    expected = count_flops(lambda: task(full, StepPosition(0, 0, 4)).loss.backward())
    task.model.set_grad_checkpointing(enable=True)  # type: ignore[operator]
    assert training_flops(copy.deepcopy(task).to("meta"), full) == expected > 1e6


def test_mfu_is_of_one_device() -> None:
    task, full = CASES["void"]()
    efficiency = Efficiency(task, World(0, 2, CPU), None, peak_tflops=0.5)
    assert "mfu" not in efficiency.read(10.0)
    efficiency.watch(full)
    values = efficiency.read(10.0)
    assert values["images_per_s_per_device"] == 5.0
    assert values["mfu"] == pytest.approx(5.0 * efficiency.flops_per_image / 0.5e12)
    assert 0.01 < values["memory_peak_gb"] < 1000


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA RTX A1000", 0),
        ("NVIDIA RTX A4000", 0), ("NVIDIA T400 4GB", 0), ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 0), ("NVIDIA GeForce RTX 3090 Ti", 0),
    ],
)  # fmt: skip
def test_peaks_of_known_gpus(name: str, tflops: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert known_peak(torch.device("cuda"), torch.bfloat16) == tflops * 1e12
    assert known_peak(torch.device("cuda"), None) == known_peak(CPU, torch.bfloat16) == 0.0


def test_a_run_logs_mfu_and_writes_a_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes, out = write_scenes(tmp_path / "train", 8), tmp_path / "out"
    flags = ("--peak_tflops", "0", "--profile", "2:3", "--epochs", "2", "--log_every", "1")
    run_pretraining_multimae.main(tiny_run(scenes, out, *flags))
    row = rows(out)[-1]
    assert 0 < row["mfu"] < 1 and row["images_per_s_per_device"] == row["images_per_s"]
    said = capsys.readouterr().out
    assert "MFU" in said and "grad norm" in said and "TFLOP/s (measured)" in said
    trace = json.loads((out / "profile/trace.json").read_text())
    steps = [e for e in trace["traceEvents"] if e.get("name", "").startswith("Optimizer.step")]
    assert len(steps) == 2
    assert "aten::" in (out / "profile/operators.txt").read_text()


@pytest.mark.parametrize("text", ["3", "3:2", "0:2", "a:b", "1:2:3"])
def test_a_wrong_range_of_steps_is_an_error(text: str) -> None:
    assert any(text in problem for problem in LogOptions(profile=text).problems())
    assert profiled_steps("20:22") == range(19, 22)
    assert not list(LogOptions(profile="20:22").problems())
