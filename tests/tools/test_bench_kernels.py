"""The benchmark of single kernels, at small sizes on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import bench_kernels


def test_what_does_not_run_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kernels.json"
    sizes = ("--model", "tiny", "--batch", "2", "--side", "16", "--device", "cpu")
    bench_kernels.main([*sizes, "--output_json", str(out)])
    found = json.loads(out.read_text())
    assert found == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["encoder attention"]["math"] > 0 and found["depth statistics"]["sort int16"] > 0
    assert found["encoder attention"]["cudnn_attention"] is None
    product = found["product of the MLP"]
    assert product["bf16"] > 0 and product["fp8"] is None
