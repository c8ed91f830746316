"""The kernel of attention of a run's steps: measured, chosen once, and used in steps alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from multimae.specs.errors import UserError
from tests.utils.training.test_global_batch import CASES, CPU
from utils.config.parse import ConfigError, parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.distributed.world import World
from utils.logs import attention_backend
from utils.logs.attention_backend import (
    BACKENDS,
    AttentionCalls,
    attention_seconds,
    choose_backend,
    prefer,
)
from utils.logs.efficiency import Efficiency
from utils.logs.monitor import RunMonitor


@pytest.mark.parametrize(
    ("wanted", "times", "expected"),
    [
        ("auto", {"flash": 0.3, "cudnn": 0.2, "efficient": 0.4}, "cudnn"),
        ("auto", {"flash": 0.3, "cudnn": None, "efficient": 0.1}, "efficient"),
        ("auto", {"flash": None, "cudnn": None, "efficient": None}, "default"),
        ("flash", {"flash": 0.3}, "flash"),
        ("math", {"math": 9.0}, "math"),
    ],
)
def test_the_fastest_kernel_that_runs_is_chosen_and_logged(
    wanted: str, times: dict[str, float | None], expected: str
) -> None:
    lines: list[str] = []
    assert choose_backend(wanted, times.__getitem__, lines.append) == expected
    (line,) = lines
    for name, time in times.items():
        assert f"{name} -" in line if time is None else f"{name} {1e3 * time:.2f} ms" in line
    assert line.startswith(f"attention: {expected} ")


def test_a_named_kernel_that_does_not_run_is_an_error() -> None:
    with pytest.raises(UserError, match="--attention cudnn"):
        choose_backend("cudnn", lambda name: None, print)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("flsh",), "did you mean|flash"),
        (("flash", "--device", "cpu"), "attention: flash .*device is cpu"),
        (("auto", "--deterministic", "--device", "cuda"), "attention: auto"),
    ],
)
def test_kernels_that_cannot_be_chosen(flags: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_config(PretrainConfig, ["--attention", *flags])


def test_a_step_is_timed_by_its_shapes() -> None:
    task, full = CASES["void"]()
    efficiency = Efficiency(task, World(0, 1, CPU), None, peak_tflops=1.0)
    with AttentionCalls() as calls:
        efficiency.watch(full)
    shape = torch.Size((4, 4, 17, 16))
    assert calls.counts == {(shape, shape): 2}  # a block's; 16 patches and a global token
    once = {(torch.Size((2, 4, 9, 8)), torch.Size((2, 4, 5, 8))): 1}
    for name in ("flash", "math"):
        assert 0 < (attention_seconds(name, once, torch.float32, CPU) or 0) < 10
    assert attention_seconds("cudnn", once, torch.float32, CPU) is None


def monitor(*flags: str) -> RunMonitor:
    cfg = parse_config(PretrainConfig, ["--peak_tflops", "1", "--device", "cpu", *flags])
    return RunMonitor(cfg, CASES["void"]()[0], World(0, 1, CPU), None, None, print)


def test_steps_alone_run_with_the_chosen_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, active = [], []

    def seconds(name: str, *_: object) -> float:
        asked.append(name)
        return {"flash": 0.3, "cudnn": 0.1, "efficient": 0.2}[name]

    @contextmanager
    def recorded(name: str) -> Iterator[None]:
        active.append(name)
        yield
        active.remove(name)

    monkeypatch.setattr(attention_backend, "attention_seconds", seconds)
    monkeypatch.setattr(attention_backend, "prefer", recorded)
    watch = monitor()
    watch.attention, watch.chosen = "auto", False  # as on a GPU
    for step in range(2):
        watch.begin(step, CASES["void"]()[1])
        assert active == ["cudnn"]
        watch.end(step)
        assert not active
    assert asked == ["flash", "cudnn", "efficient"]  # once


def test_a_run_on_a_cpu_does_not_load_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "utils.logs.attention_backend")
    watch = monitor("--attention", "auto")
    watch.begin(0, CASES["void"]()[1])
    watch.end(0)
    assert "utils.logs.attention_backend" not in sys.modules


def test_the_chosen_kernel_comes_first_and_the_others_where_it_does_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}

    def kernels(backends: list[SDPBackend], set_priority: bool) -> str:
        given.update(backends=backends, set_priority=set_priority)
        return "context"

    monkeypatch.setattr(attention_backend, "sdpa_kernel", kernels)
    assert prefer("efficient") == "context" and given["set_priority"]
    assert given["backends"][0] == SDPBackend.EFFICIENT_ATTENTION
    assert set(given["backends"]) == set(BACKENDS.values()) and len(given["backends"]) == 4


def test_compiled_attention_runs_with_a_chosen_kernel() -> None:
    torch.compiler.reset()
    q = torch.randn(2, 4, 9, 8)
    attend = torch.compile(F.scaled_dot_product_attention, backend="aot_eager", fullgraph=True)
    with prefer("flash"):
        found = attend(q, q, q)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, q, q))
