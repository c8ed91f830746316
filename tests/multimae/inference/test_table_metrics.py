"""Metrics of several labels and of numbers per image."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score
from torchmetrics.regression import R2Score

from multimae.inference.table_metrics import (
    MultiLabelMeter,
    MultiLabelScores,
    NumberMeter,
    average_precision,
)


def test_average_precision() -> None:
    scores, positive = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 1, 0]).bool()
    assert average_precision(scores, positive) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(torch.zeros(4), positive) == pytest.approx(0.5)


def test_several_labels_agree_with_torchmetrics_in_shards() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(40, 6).round(decimals=1), (torch.rand(40, 6) < 0.3).float()
    shards = [MultiLabelMeter(40, 6) for _ in range(2)]
    for i, shard in enumerate(shards):
        rows = list(range(i, 40, 2))
        shard.update(rows, logits[rows], targets[rows])
    shards[0].merge(shards[1])
    values, truth = shards[0].compute(), targets.long()
    assert values["map"] == pytest.approx(
        100 * float(MultilabelAveragePrecision(6)(logits.sigmoid(), truth)), rel=1e-5
    )
    for average in ("micro", "macro"):
        expected = MultilabelF1Score(6, average=average)(logits.sigmoid(), truth)
        assert values[f"f1_{average}"] == pytest.approx(100 * float(expected), rel=1e-5)


def test_the_loss_of_several_labels_is_a_mean_over_known_ones() -> None:
    scores = MultiLabelScores(["a", "b"], 2, torch.device("cpu"))
    logits = torch.tensor([[0.5, 3.0], [-1.0, 2.0]])
    targets = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    scores.update(["b", "a"], logits, targets)
    expected = [math.log1p(math.exp(x)) for x in (-0.5, -1.0, -2.0)]
    assert scores.compute()["loss"] == pytest.approx(sum(expected) / 3)


def test_unknown_labels_do_not_count() -> None:
    meter = MultiLabelMeter(3, 2)
    targets = torch.tensor([[1.0, math.nan], [0.0, 1.0], [math.nan, 0.0]])
    meter.update([0, 1, 2], torch.tensor([[2.0, 5.0], [-1.0, 1.0], [3.0, -1.0]]), targets)
    assert meter.compute() == {"map": 100, "f1_micro": 100, "f1_macro": 100}


def test_numbers_in_their_unit() -> None:
    torch.manual_seed(0)
    mean, std = (50.0, -3.0), (10.0, 0.5)
    outputs, targets = torch.randn(30, 2), torch.randn(30, 2)
    targets[3, 1] = math.nan
    meter = NumberMeter(("age", "size"), mean, std)
    meter.update(outputs[:11], targets[:11])
    meter.update(outputs[11:], targets[11:])
    values = meter.compute()
    known = targets[:, 1].isfinite()
    error = (outputs - targets)[known, 1] * 0.5
    assert values["mae/size"] == pytest.approx(float(error.abs().mean()), rel=1e-5)
    assert values["rmse/size"] == pytest.approx(float(error.square().mean().sqrt()), rel=1e-5)
    expected = R2Score()(outputs[:, 0], targets[:, 0])
    assert values["r2/age"] == pytest.approx(float(expected), rel=1e-5)
    single = NumberMeter(("age",), (50.0,), (10.0,))
    single.update(outputs[:, :1], targets[:, :1])
    assert single.compute()["r2"] == pytest.approx(float(expected), rel=1e-5)
