import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from multimae.inference.meters import MeanMeter, Meter
from multimae.inference.metrics import AccuracyMeter, DepthMeter, SegmentationMeter

GOLDEN = Path(__file__).parents[2] / "data" / "parity"
NYU_MEAN, NYU_STD = 2070.7764, 777.5723


def test_semseg_golden() -> None:
    golden = load_file(GOLDEN / "semseg_metrics.safetensors")
    meter = SegmentationMeter(11)
    for pred, target in zip(golden["input.pred"], golden["input.target"], strict=True):
        meter.update(pred, target)
    iou, accuracy = meter.per_class()
    torch.testing.assert_close(iou, golden["output.iou"], rtol=0, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(
        accuracy, golden["output.accuracy"], rtol=0, atol=1e-12, equal_nan=True
    )
    got = meter.compute()
    for key in ("mean_iou", "mean_accuracy", "pixel_accuracy"):
        assert got[key] == pytest.approx(golden[f"output.{key}"].item(), abs=1e-12), key


def test_depth_golden() -> None:
    golden = load_file(GOLDEN / "depth_losses_metrics.safetensors")
    pred, target = (golden[f"input.{k}"] * NYU_STD + NYU_MEAN for k in ("pred", "target"))
    meter = DepthMeter()
    for part in range(3):
        meter.update(pred[part], target[part], golden["input.mask_valid"][part])
    expected = {
        k.removeprefix("output.nyu."): v.item()
        for k, v in golden.items()
        if k.startswith("output.nyu.")
    }
    got = meter.compute()
    assert set(got) == set(expected)
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=1e-5), key


def test_segmentation_agrees_with_torchmetrics() -> None:
    oracle = pytest.importorskip("torchmetrics.classification")
    torch.manual_seed(0)
    pred, target = torch.randint(0, 7, (2, 4, 9, 11))
    target[0, :2] = 255
    meter = SegmentationMeter(7)
    meter.update(pred, target)
    confusion = oracle.MulticlassConfusionMatrix(7, ignore_index=255)(pred, target)
    torch.testing.assert_close(meter.confusion, confusion.double())
    jaccard = oracle.MulticlassJaccardIndex(7, average="none", ignore_index=255)(pred, target)
    torch.testing.assert_close(meter.per_class()[0].float(), jaccard)


def test_accuracy_agrees_with_torchmetrics() -> None:
    oracle = pytest.importorskip("torchmetrics.classification")
    torch.manual_seed(0)
    logits, target = torch.randn(50, 10), torch.randint(0, 10, (50,))
    meter = AccuracyMeter((1, 5))
    meter.update(logits[:20], target[:20])
    meter.update(logits[20:], target[20:])
    for k in (1, 5):
        top = oracle.MulticlassAccuracy(10, top_k=k, average="micro")(logits, target)
        assert meter.compute()[f"acc{k}"] == pytest.approx(100 * top.item())


def test_depth_rmse_agrees_with_torchmetrics() -> None:
    oracle = pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    pred, target = torch.rand(2, 3, 8, 8) * 5000
    meter = DepthMeter()
    meter.update(pred, target)
    rmse = oracle.MeanSquaredError(squared=False)(pred, target)
    assert meter.compute()["rmse"] == pytest.approx(rmse.item(), rel=1e-6)


def test_top_k_above_num_classes_is_always_correct() -> None:
    meter = AccuracyMeter((1, 5))
    meter.update(torch.eye(3), torch.tensor([0, 1, 0]))
    assert meter.compute() == {"acc1": pytest.approx(200 / 3), "acc5": 100.0}


def test_mean_meter_weights_and_missing_names() -> None:
    meter = MeanMeter(["rgb", "depth"])
    meter.update({"rgb": torch.tensor(1.0)}, weight=3)
    meter.update({"rgb": torch.tensor([5.0, math.nan])}, weight=torch.tensor([1.0, 0.0]))
    got = meter.compute()
    assert got["rgb"] == pytest.approx(2.0)
    assert math.isnan(got["depth"])
    with pytest.raises(ValueError, match="no \\['thermal'\\].*'rgb', 'depth'"):
        meter.update({"thermal": torch.tensor(1.0)})


def test_invalid_pixels_are_ignored_even_if_nan() -> None:
    target = torch.tensor([1000.0, 2000.0, math.nan])
    meter = DepthMeter()
    meter.update(torch.tensor([1000.0, 1000.0, 7.0]), target, torch.tensor([255, 255, 0]))
    got = meter.compute()
    assert got["delta_1"] == 0.5
    assert got["rel"] == pytest.approx(0.25)
    assert got["rmse"] == pytest.approx(math.sqrt(500_000.0))


@pytest.mark.parametrize("bad", [[3], [-1]])
@pytest.mark.parametrize("where", ["pred", "target"])
def test_class_ids_out_of_range(bad: list[int], where: str) -> None:
    ids = {"pred": torch.tensor([0]), "target": torch.tensor([0])} | {where: torch.tensor(bad)}
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        SegmentationMeter(3).update(**ids)


def update_mean(meter: MeanMeter, seed: torch.Generator, n: int) -> None:
    meter.update({"loss": torch.rand(n, generator=seed)})


def update_accuracy(meter: AccuracyMeter, seed: torch.Generator, n: int) -> None:
    meter.update(torch.randn(n, 6, generator=seed), torch.randint(0, 6, (n,), generator=seed))


def update_segmentation(meter: SegmentationMeter, seed: torch.Generator, n: int) -> None:
    pred, target = torch.randint(0, 4, (2, n, 5), generator=seed)
    meter.update(pred, torch.where(target == 3, 255, target))


def update_depth(meter: DepthMeter, seed: torch.Generator, n: int) -> None:
    pred, target, valid = torch.rand(3, n, 5, generator=seed) * 3000 - 100
    meter.update(pred, target, valid > 0)


CASES: list[tuple[Callable[[], Meter], Callable[..., None]]] = [
    (lambda: MeanMeter(["loss"]), update_mean),
    (lambda: AccuracyMeter((1, 3)), update_accuracy),
    (lambda: SegmentationMeter(4), update_segmentation),
    (DepthMeter, update_depth),
]


@pytest.mark.parametrize(("make", "update"), CASES)
@given(sizes=st.lists(st.integers(0, 7), min_size=1, max_size=5), split=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_merged_states_equal_one_meter(
    make: Callable[[], Meter], update: Callable[..., None], sizes: list[int], split: int
) -> None:
    whole, first, second = make(), make(), make()
    seeds = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    for i, n in enumerate(sizes):
        update(whole, seeds[0], n)
        update(first if i < split else second, seeds[1], n)
    reduced = make()
    reduced.load(first.state() + second.state())
    first.merge(second)
    assert first.state().dtype == torch.float64
    for got in (reduced.compute(), first.compute()):
        assert got == pytest.approx(whole.compute(), rel=1e-12, nan_ok=True)


def test_metrics_do_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    pred, target = torch.rand(2, 6, 50, 50) * 5000 + 1
    results = []
    for order, size in ((torch.arange(6), 6), (torch.randperm(6), 4), (torch.randperm(6), 1)):
        depth, mean = DepthMeter(), MeanMeter(["loss"])
        for rows in order.split(size):
            depth.update(pred[rows], target[rows])
            mean.update({"loss": (pred - target)[rows].square()})
        results.append({**depth.compute(), **mean.compute()})
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-12)


@pytest.mark.parametrize(("make", "update"), CASES)
def test_empty_reset_and_foreign_state(
    make: Callable[[], Meter], update: Callable[..., None]
) -> None:
    meter = make()
    assert all(math.isnan(v) for v in meter.compute().values())
    update(meter, torch.Generator().manual_seed(0), 8)
    assert not any(math.isnan(v) for v in meter.compute().values())
    meter.reset()
    assert all(math.isnan(v) for v in meter.compute().values())
    with pytest.raises(ValueError, match="got a state of shape"):
        meter.load(torch.zeros(999))
