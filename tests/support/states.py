"""Small models and random ViTs, for the tests of weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from multimae.input_adapters import PatchedInputAdapter
from multimae.multimae import MultiViT

MINI = {"dim_tokens": 24, "depth": 2, "num_heads": 3}


def multivit(size: int = 48, heads: dict[str, nn.Module] | None = None, **dims: Any) -> MultiViT:
    rgb = PatchedInputAdapter(3, 1, 16, image_size=size)
    return MultiViT({"rgb": rgb}, heads, **{**MINI, **dims}).eval()


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    assert [k for k in expected if not torch.equal(actual[k], expected[k])] == []


def random_timm(name: str) -> nn.Module:
    """Every parameter random, biases, norms and tokens too; features before the final norm."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, global_pool="", weight_init="skip").eval()
    model.norm = nn.Identity()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(mean=float(".norm" in key and key.endswith("weight")), std=0.03)
    return model
