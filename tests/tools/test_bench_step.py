"""The benchmark of the training step: its report and its counters."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

import tests.conftest  # noqa: F401  the model's size
from tools import bench_crops, bench_heads, bench_kernels, bench_step
from tools.bench.counting import (
    Product,
    StepWork,
    count_saved_bytes,
    measure_work,
)
from tools.bench.kernels import floors, kind_of
from utils.logs.efficiency import count_flops

TINY = ("--model", "nano", "--batch", "1", "--input_size", "32", "--num_encoded_tokens", "3",
        "--device", "cpu", "--precision", "fp32", "--steps", "1", "--warmup", "0",
        "--num_threads", "1")  # fmt: skip


@pytest.mark.long
def test_the_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    bench_step.main([*TINY])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("fast", "plain", "ViTMAE"):
        assert result[name]["tflop"] > 0 and result[name]["step_s"] > 0
    # On a CPU the gradient norm is read, which waits for nothing there.
    assert result["fast"]["host_syncs"] == 1 < result["plain"]["host_syncs"]
    assert result["fast"]["tflop"] < result["plain"]["tflop"]
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert set(result["shares"]) == {"embedding", "encoder", "decoders", "loss", "optimiser"}


@pytest.mark.long
def test_the_table_varies_one_setting_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    bench_step.main([*TINY, "--table", "--largest_batch", "2", "--largest_size", "32"])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    work = {kind: [r["tflop"] for r in rows if r["varied"] == kind] for kind in
            ("tokens", "modalities", "batch")}  # fmt: skip
    assert [len(v) for v in work.values()] == [1, 6, 2]
    assert work["batch"][1] == pytest.approx(2 * work["batch"][0])


def test_work_of_a_step() -> None:
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(8, 16, requires_grad=True)
    assert count_flops(lambda: a @ b) == 2 * 4 * 8 * 16
    assert count_saved_bytes(lambda: (a @ b).exp()) == 4 * 4 * 16
    assert count_saved_bytes(lambda: (a @ b).sin()) == 2 * 4 * 4 * 16
    q = torch.randn(2, 3, 5, 7)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attend(q, q, q)) == 2 * 2 * (2 * 3) * 5 * 5 * 7

    def step() -> None:
        loss = torch.nn.functional.linear(a, b.T, torch.zeros(16)).sum()
        assert loss.isfinite().item()
        a[a > 0].sum()

    work = measure_work(step, lambda: a @ b)
    assert work.saved_bytes == 4 * 4 * 16
    assert work.products == {Product(1, 4, 8, 16): 1}
    assert work.host_syncs == {"item": 1, "nonzero": 1}


@pytest.mark.long
def test_heads_are_timed_beside_the_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    bench_heads.main(["--input_size", "32", "--batch", "1", "--steps", "1"])
    lines = capsys.readouterr().out.splitlines()
    names = [line[:22].strip() for line in lines]
    assert names == [
        *("head", "encoder alone", "segmenter", "convnext", "dpt", "convnext, by channel"),
    ]
    assert all(float(line[22:31]) > 0 for line in lines[1:])


@pytest.mark.long
def test_kernels_equality_and_fsdp_of_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "kernels.txt"
    bench_step.main([*TINY, "--no_bases", "--sharded", "--check", "--kernels", str(table)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert max(result["gap"].values()) < 1e-5
    assert result["sharded"]["step_s"] > 0
    assert "aten::" in table.read_text() and "least time" in table.read_text()


def test_kinds_and_floors_of_kernels() -> None:
    kinds = {name: kind_of(name) for name in ("nvjet_tst_128x256", "cudnn_generated_fort_sdpa",
             "triton_poi_fused_gelu_3", "_fused_adamw_", "Memcpy DtoD")}  # fmt: skip
    assert list(kinds.values()) == [
        "products", "attention", "element-wise", "optimizer", "copies"
    ]  # fmt: skip
    work = StepWork(flops=2 * 10**12, saved_bytes=10**9, products=Counter(), host_syncs=Counter())
    least = floors(work, num_parameters=10**6, flop_per_s=1e15, bytes_per_s=1e12)
    assert least == pytest.approx({"products": 2.0, "activations": 2.0, "optimizer": 0.028})


def test_crops_in_the_loader_and_on_the_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_crops, "SIZES", ((40, 56),))
    monkeypatch.setattr(bench_crops, "COUNT", 3)
    bench_crops.main(["--batch", "4", "--side", "32", "--rounds", "1", "--device", "cpu"])
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1]).values()
    assert found["loader"].keys() == found["device"].keys()
    assert min(v for values in found.values() for v in values.values()) >= 0


def test_kernels_that_do_not_run_are_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kernels.json"
    sizes = ("--model", "tiny", "--batch", "2", "--side", "16", "--device", "cpu")
    bench_kernels.main([*sizes, "--output_json", str(out)])
    found = json.loads(out.read_text())
    assert found == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["encoder attention"]["math"] > 0 and found["depth statistics"]["sort int16"] > 0
    assert found["encoder attention"]["cudnn_attention"] is None
    product = found["product of the MLP"]
    assert product["bf16"] > 0 and product["fp8"] is None
