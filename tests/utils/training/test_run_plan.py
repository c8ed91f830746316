"""Run plans derived from the configuration, and the final table of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from multimae.specs.errors import UserError
from utils.config.options import OptimOptions, RuntimeOptions
from utils.training.schedule import make_run_plan

OPTIM = OptimOptions(warmup_epochs=2, warmup_lr=0.0)
RUNTIME = RuntimeOptions(epochs=10, batch_size=32)


def test_learning_rate_follows_the_global_batch() -> None:
    plan = make_run_plan(40, 4, replace(OPTIM, update_freq=2), RUNTIME, blr=1e-3)
    assert plan.global_batch == 32 * 2 * 4
    assert plan.lr == 1e-3 * 256 / 256
    assert (plan.steps_per_epoch, plan.total_steps) == (20, 200)
    assert len(plan.schedule) == 200
    assert (
        plan.schedule.lr[39] == plan.schedule.lr[40] == plan.lr
    )  # the line ends, the cosine begins
    assert make_run_plan(40, 1, OPTIM, RUNTIME, blr=None, lr=0.5).lr == 0.5


def test_warmup_steps_override_warmup_epochs() -> None:
    plan = make_run_plan(10, 1, replace(OPTIM, warmup_steps=5), RUNTIME, blr=1.0)
    assert plan.schedule.lr[4] == plan.lr


def test_max_steps_cuts_the_run_but_not_the_schedule() -> None:
    plan = make_run_plan(10, 1, OPTIM, replace(RUNTIME, max_steps=7), blr=1.0)
    assert plan.total_steps == 7 and len(plan.schedule) == 100


def test_invalid_plans_are_errors() -> None:
    with pytest.raises(UserError, match="--update_freq 8: an epoch has only 4 batches"):
        make_run_plan(4, 1, replace(OPTIM, update_freq=8), RUNTIME, blr=1.0)
    with pytest.raises(UserError, match="warm-up of 500 steps"):
        make_run_plan(10, 1, replace(OPTIM, warmup_steps=500), RUNTIME, blr=1.0)


def test_a_schedule_may_end_at_the_last_step() -> None:
    optim = OptimOptions(warmup_epochs=0)
    runtime = RuntimeOptions(epochs=3, max_steps=5, batch_size=2)
    fitted = replace(runtime, schedule_to_max_steps=True)
    whole, short = (make_run_plan(10, 1, optim, r, blr=1.0) for r in (runtime, fitted))
    assert len(whole.schedule) == 30 and len(short.schedule) == whole.total_steps == 5


def warnings_of(batches: int, optim: OptimOptions, runtime: RuntimeOptions, **rate: float) -> str:
    plan = make_run_plan(batches, 1, optim, runtime, **{"blr": None, **rate})
    return "\n".join(plan.warnings(optim, rate.get("blr")))


def test_unusable_learning_rates_give_warnings() -> None:
    small, usual = replace(RUNTIME, batch_size=4), replace(RUNTIME, batch_size=256)
    low = warnings_of(40, OPTIM, small, blr=1e-4)
    assert "1.6e-06 = blr 0.0001 x 4 / 256" in low
    assert "--blr to about 0.0064" in low and "batch to about 256" in low
    assert not warnings_of(40, OPTIM, small, blr=0.0064)
    assert not warnings_of(40, OPTIM, usual, blr=1e-4)
    assert not warnings_of(40, replace(OPTIM, opt="sgd"), small, blr=1e-4)
    assert "--lr to about 0.0001" in warnings_of(40, OPTIM, small, lr=1e-7)
    assert "lower --blr" in warnings_of(40, OPTIM, usual, blr=0.1)
    assert "--min_lr 0.01" in warnings_of(40, replace(OPTIM, min_lr=0.01), usual, blr=1e-3)
    assert "--warmup_lr 0.01" in warnings_of(40, replace(OPTIM, warmup_lr=0.01), usual, blr=1e-3)


def test_short_runs_and_long_warmup_give_warnings() -> None:
    short = replace(RUNTIME, max_steps=60)
    assert "80 of 60 steps" in warnings_of(40, OPTIM, short, blr=1e-3)
    assert "only 40 steps" in warnings_of(4, OPTIM, RUNTIME, blr=1e-3)
    plan = make_run_plan(40, 1, OPTIM, RUNTIME, blr=1e-3)
    assert "peak lr 0.000125, 400 steps, 80 of them warm-up (20%)" in plan.describe()
