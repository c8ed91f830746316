import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from utils.training.finetune_groups import finetune_no_decay
from utils.training.optim import param_groups
from utils.training.schedule import Schedule, warmup_cosine

GOLDEN = Path(__file__).parents[2] / "data" / "parity" / "cosine_schedule.safetensors"


@pytest.mark.parametrize(
    ("key", "base", "final", "total", "warmup"),
    [
        ("warmup", 1e-3, 1e-5, 10 * 7, 3 * 7),
        ("nowarm", 5e-4, 0.0, 4 * 5, 0),
        ("steps", 1e-3, 0.0, 6 * 5, 8),
    ],
)
def test_golden(key: str, base: float, final: float, total: int, warmup: int) -> None:
    expected = load_file(GOLDEN)[f"output.{key}"]
    got = warmup_cosine(base, final, total, warmup)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-18)


@given(
    base=st.floats(1e-6, 1.0),
    ratio=st.floats(0.0, 1.0),
    start_ratio=st.floats(0.0, 1.0),
    total=st.integers(1, 200),
    data=st.data(),
)
def test_shape_and_bounds(
    base: float, ratio: float, start_ratio: float, total: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    final, start = base * ratio, base * start_ratio
    got = warmup_cosine(base, final, total, warmup, start)
    assert len(got) == total
    assert got[warmup] == pytest.approx(base, rel=1e-12)
    assert np.all(np.diff(got[warmup:]) <= 1e-15)
    assert np.all(np.diff(got[:warmup]) >= -1e-15)
    assert got[-1] >= final * (1 - 1e-12)
    if warmup:
        assert got[0] == pytest.approx(start)


@pytest.mark.parametrize(("total", "warmup"), [(5, 5), (5, 9), (5, -1)])
def test_too_long_warmup_is_an_error(total: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"{warmup} steps.*{total} steps"):
        warmup_cosine(1.0, 0.0, total, warmup)


def test_schedule_without_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one step, got 0"):
        warmup_cosine(1.0, 0.0, 0)


def test_apply_scales_rates_and_moves_only_the_scheduled_decay() -> None:
    net = torch.nn.Module()
    net.encoder = torch.nn.Linear(2, 2)
    net.output_adapters = torch.nn.Linear(2, 2, bias=False)
    groups = param_groups(
        net.named_parameters(),
        0.05,
        lr_scale=lambda name: 0.5 if name.startswith("encoder") else 1.0,
        no_decay=finetune_no_decay,
        decoder_decay=0.01,
    )
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    schedule = Schedule.cosine(
        lr=1e-3, min_lr=0.0, total_steps=10, weight_decay=0.05, weight_decay_end=0.4
    )
    lr = schedule.apply(optimizer, 5)
    cosine = 0.5 * (1 + math.cos(math.pi * 0.5))
    assert lr == pytest.approx(1e-3 * cosine)
    by_name = {g["param_names"][0]: g for g in optimizer.param_groups}
    assert by_name["encoder.weight"]["lr"] == pytest.approx(0.5 * lr)
    assert by_name["output_adapters.weight"]["lr"] == pytest.approx(lr)
    assert by_name["encoder.weight"]["weight_decay"] == pytest.approx(0.4 + (0.05 - 0.4) * cosine)
    assert by_name["encoder.bias"]["weight_decay"] == 0.0
    assert by_name["output_adapters.weight"]["weight_decay"] == 0.01


@pytest.mark.parametrize("end", [None, 0.05])
def test_constant_weight_decay_leaves_groups_alone(end: float | None) -> None:
    schedule = Schedule.cosine(
        lr=1.0, min_lr=0.0, total_steps=3, weight_decay=0.05, weight_decay_end=end
    )
    assert schedule.weight_decay is None
    assert len(schedule) == 3


@pytest.mark.parametrize("step", [-1, 3])
def test_step_out_of_range_is_an_error(step: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(ValueError, match=f"step {step} is outside"):
        Schedule(lr=np.ones(3)).apply(optimizer, step)
