"""Low-rank adapters (LoRA, Hu et al. 2022) in the encoder, by the library ``peft``.

State dicts keep the model's names: the weight of an adapted layer is the merged one. Loading such a
weight resets the adapter. Checkpoints store the frozen weights and the adapters in addition, so
that a run resumes exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from multimae.specs.errors import UserError

LAYERS = r"encoder\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
"""Adapted linear layers."""
PREFIX = "lora."
"""Prefix of the entries in checkpoints."""
_NAME = "default"  # peft's name of the adapter
_FROZEN = ("base_layer.weight", "base_layer.bias")
_LOW_RANK = (f"lora_A.{_NAME}.weight", f"lora_B.{_NAME}.weight")


def add_lora(model: nn.Module, rank: int) -> None:
    """Add adapters of a rank, with scale 1, to attention and MLP of the encoder, in place.

    All other parameters except those of the output adapters are frozen.

    Raises:
        UserError: ``peft`` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as err:
        raise UserError(
            f'--lora_rank needs the library peft ({err}): pip install "multimae[lora]", or peft.'
        ) from err
    position_tables = {n for n, p in model.named_parameters() if not p.requires_grad}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS)
    inject_adapter_in_model(config, model, adapter_name=_NAME)
    for name, parameter in model.named_parameters():
        is_head = name.startswith("output_adapters.") and name not in position_tables
        parameter.requires_grad_(".lora_" in name or is_head)
    for _, layer in _adapted(model):
        layer.register_state_dict_post_hook(_merge)
        layer.register_load_state_dict_pre_hook(_split)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Frozen weights and adapters of every adapted layer; empty without adapters."""
    return {
        f"{PREFIX}{name}.{part}": layer.get_parameter(part).detach()
        for name, layer in _adapted(model)
        for part in (*_FROZEN, *_LOW_RANK)
    }


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Inverse of :func:`adapter_state`.

    Raises:
        KeyError: An entry is missing.
    """
    with torch.no_grad():
        for key, value in adapter_state(model).items():
            value.copy_(state[key])


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, m) for name, m in model.named_modules() if hasattr(m, "lora_A"))


def _merge(layer: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Replace the entries of an adapted layer by those of a linear layer."""
    weight = state[prefix + "base_layer.weight"] + layer.get_delta_weight(_NAME).detach()
    bias = state[prefix + "base_layer.bias"]
    for part in (*_FROZEN, *_LOW_RANK):
        del state[prefix + part]
    state[prefix + "weight"], state[prefix + "bias"] = weight, bias


def _split(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load a linear layer as the frozen one, with an adapter that changes nothing."""
    if prefix + "weight" not in state:
        return
    for name in ("weight", "bias"):
        state[f"{prefix}base_layer.{name}"] = state.pop(prefix + name)
    low, high = _LOW_RANK
    state[prefix + low] = layer.get_parameter(low).detach()
    state[prefix + high] = torch.zeros_like(layer.get_parameter(high))
