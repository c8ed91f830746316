"""Which number format ``auto`` means."""

from __future__ import annotations

import pytest
import torch

from utils.training.stepper import choose_precision

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
def test_auto_asks_the_processor(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, bool],
    expected: torch.dtype | None,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision("auto", CPU).dtype == expected


def test_auto_without_an_answer_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", CPU).dtype is None


def test_a_named_format_is_taken() -> None:
    named = {name: choose_precision(name, CPU).dtype for name in ("bf16", "fp16", "fp32")}
    assert named == {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
