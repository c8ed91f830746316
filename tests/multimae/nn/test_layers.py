"""Layers in training mode, which the golden tensors do not cover."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from multimae import ModelSpec, MultiMAE
from multimae.input_adapters import PatchedInputAdapter
from multimae.nn.layers import DropPath
from multimae.specs.modalities import default_table


def test_drop_path_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(20_000, 2, 3))
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (out == out[:, :1, :1]).all(), "whole samples are dropped"


def test_changed_position_tables_take_effect() -> None:
    adapter = PatchedInputAdapter(3, 1, 4, dim_tokens=8, image_size=16)
    other = PatchedInputAdapter(3, 1, 4, dim_tokens=8, image_size=16)
    with torch.no_grad():
        other.pos_emb.add_(1.0)
        other.proj.load_state_dict(adapter.proj.state_dict())
    image = torch.zeros(1, 3, 24, 16)  # tables are resized for this size
    before = adapter(image)
    torch.testing.assert_close(adapter(image), before)
    adapter.load_state_dict(other.state_dict())
    torch.testing.assert_close(adapter(image), before + 1.0)
    adapter.load_state_dict({**other.state_dict(), "pos_emb": other.pos_emb + 1.0}, assign=True)
    torch.testing.assert_close(adapter(image), before + 2.0)
    with torch.no_grad():
        adapter.pos_emb.add_(1.0)
    torch.testing.assert_close(adapter(image), before + 3.0)


def test_float32_decoders_run_outside_autocast() -> None:
    rows = tuple(replace(default_table()[name], patch_size=4) for name in ("rgb", "depth"))
    torch.manual_seed(0)
    spec = ModelSpec("pretrain_multimae_nano", rows, rows, patch_size=4, image_size=16)
    model = MultiMAE.from_spec(spec)
    x = {"rgb": torch.randn(2, 3, 16, 16), "depth": torch.randn(2, 1, 16, 16)}
    with torch.autocast("cpu", torch.bfloat16):
        preds, _ = model(x, num_encoded_tokens=8, fp32_output_adapters=("depth",))
    assert isinstance(preds, dict)
    assert (preds["rgb"].dtype, preds["depth"].dtype) == (torch.bfloat16, torch.float32)
    # Float32 throughout, not only the last layer's result in another type.
    assert not torch.equal(preds["depth"], preds["depth"].bfloat16().float())
