"""Precision options, and a step: unscaling, clipping, seeds, skipped steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import AveragedModel

from utils.config.options import RuntimeOptions
from utils.distributed.world import World
from utils.tasks.base import StepOutput, Task
from utils.training.state import TrainState
from utils.training.stepper import Precision, Stepper, choose_precision, clip_or_skip

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, None),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, None),
    ],
)
def test_auto_precision_follows_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, bool],
    expected: torch.dtype | None,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision("auto", CPU).dtype == expected


def test_auto_precision_falls_back_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", CPU).dtype is None


def test_explicit_precision_is_used() -> None:
    named = {name: choose_precision(name, CPU).dtype for name in ("bf16", "fp16", "fp32")}
    assert named == {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


class LinearTask(nn.Module):
    """The loss is ``0.5 * weight``; it draws one random number per step."""

    loss_names = ("loss",)
    plan = Task.plan

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.model.weight)

    def forward(self, batch: Any, position: Any) -> StepOutput:
        return StepOutput(0.5 * self.model.weight.sum(), {"random": torch.rand(())})

    def count(self, batch: Any, position: Any) -> Tensor:
        return torch.ones(1, dtype=torch.int64)

    def extra_state_dict(self) -> dict[str, Any]:
        return {}

    def load_extra_state_dict(self, state: Any) -> None:
        pass


def one_update(
    rank: int = 0, scale: float | None = None, skip_grad: float | None = None
) -> tuple[TrainState, dict[str, torch.Tensor]]:
    task: Any = LinearTask()
    optimizer = torch.optim.SGD(task.parameters(), lr=1.0)
    scaler = GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    state = TrainState(task, optimizer, scaler, ema=AveragedModel(task.model))
    plan: Any = SimpleNamespace(accum_steps=1, batch_size=1, global_batch=1)
    optim: Any = SimpleNamespace(clip_grad=1.0)
    runtime: Any = RuntimeOptions(on_nonfinite="stop", find_unused_params=False)
    stepper = Stepper(
        state, World(rank, 1, CPU), plan, Precision("cpu", None), optim, runtime, skip_grad
    )
    batch: Any = SimpleNamespace()
    batch.to = lambda device: batch
    return state, stepper.step(state, [batch]).logs


def test_gradients_are_unscaled_before_clipping() -> None:
    state, logs = one_update(scale=1024.0)
    assert logs["grad_norm"].item() == pytest.approx(0.5)
    assert state.model.weight.item() == pytest.approx(0.5)


def test_dropout_differs_between_ranks() -> None:
    draws = [one_update(rank)[1]["random"].item() for rank in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(("skip_grad", "updates"), [(None, 1), (0.1, 0)])
def test_skipped_steps_do_not_update_the_ema(skip_grad: float | None, updates: int) -> None:
    state, _ = one_update(skip_grad=skip_grad)
    assert state.ema is not None and state.ema.n_averaged.item() == updates
    assert state.model.weight.item() == pytest.approx(1.0 - 0.5 * updates)


def test_the_best_value_is_restored() -> None:
    world = World(0, 1, CPU)
    saved, resumed = one_update()[0], one_update()[0]
    saved.best = 0.25
    resumed.load_state_dict(saved.state_dict(world), world)
    assert resumed.best == 0.25


def with_gradients(*values: float) -> list[Tensor]:
    params = [nn.Parameter(torch.zeros(1)) for _ in values]
    for p, v in zip(params, values, strict=True):
        p.grad = torch.tensor([v])
    return [*params, nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize(
    ("clip", "skip", "grads", "skipped"),
    [
        (None, None, [3.0, 4.0], False),
        (1.0, None, [0.6, 0.8], False),
        (10.0, 4.9, [3.0, 4.0], True),
        (1.0, 5.1, [0.6, 0.8], False),
    ],
)
def test_clip_or_skip(
    clip: float | None, skip: float | None, grads: list[float], skipped: bool
) -> None:
    params = with_gradients(3.0, 4.0)
    norm, skip_step = clip_or_skip(params, clip, skip)
    assert norm.item() == pytest.approx(5.0)
    assert skip_step.dtype == torch.bool
    assert bool(skip_step) is skipped
    assert [p.grad.item() for p in params[:2]] == pytest.approx(grads)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_nan_gradient_is_skipped(clip: float | None) -> None:
    assert bool(clip_or_skip(with_gradients(1.0, float("nan")), clip, 100.0)[1])


def test_no_gradients() -> None:
    norm, skip = clip_or_skip([nn.Parameter(torch.zeros(1))], None, 1.0)
    assert norm.item() == 0.0 and not bool(skip)
