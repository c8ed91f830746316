"""Convert state dicts between MultiMAE and ViT (timm, MAE, Hugging Face); see SPEC section 7.

ViT's class token, which comes first, becomes MultiMAE's global token, which comes last. Features
are equal up to this order, before timm's final norm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from multimae.nn.tokens import Size
from multimae.weights.files import StateDict
from multimae.weights.load import is_hf_vit, is_vit_state_dict

# Layers that both kinds of block have. Any other layer would change the features.
_LAYER = re.compile(r"\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)")
_PATCH_PROJ = ("patch_embed.proj.weight", "patch_embed.proj.bias")
_TOKENS = ("cls_token", "global_tokens", "pos_embed")
_FEATURES = re.compile(r"blocks\.|patch_embed\.|norm_pre\.|(reg|dist|register)_tokens?$")


_HF_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HF_LAYERS = {
    "attention.attention.query": "attn.qkv",
    "attention.attention.key": "",  # joined with the query
    "attention.attention.value": "",
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


class Converted(NamedTuple):
    """A converted state dict and the unused keys of the original."""

    state: dict[str, Tensor]
    unused: tuple[str, ...]


def to_multimae(state: StateDict) -> Converted:
    """Weights of a ViT (timm, MAE, Hugging Face) under MultiMAE's names; others unchanged.

    Raises:
        ValueError: A ViT that has no MultiMAE of its kind.
    """
    if is_vit_state_dict(state) or is_hf_vit(state):
        return vit_to_multimae(hf_to_vit(state))
    return Converted(state, ())


def hf_to_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename ViT and ViTMAE weights of Hugging Face transformers to timm's names.

    Joins query, key and value. Other state dicts, and the keys of MAE's decoder, are unchanged.
    """
    if not is_hf_vit(state):
        return dict(state)
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("vit.")
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
        if layer is None or layer[2] not in _HF_LAYERS:
            out[_HF_NAMES.get(name, name)] = value
        elif layer[2].endswith("query"):
            joined = [state[key.replace("query", part)] for part in ("query", "key", "value")]
            out[f"blocks.{layer[1]}.attn.qkv.{layer[3]}"] = torch.cat(joined)
        elif _HF_LAYERS[layer[2]]:
            out[f"blocks.{layer[1]}.{_HF_LAYERS[layer[2]]}.{layer[3]}"] = value
    return out


def multimae_to_vit(
    state: Mapping[str, Tensor], *, modality: str = "rgb", keep_global_tokens: bool = False
) -> Converted:
    """Convert MultiMAE weights to a ViT of one modality, without final norm and head.

    Args:
        state: Weights of a MultiMAE or MultiViT.
        modality: Image input to keep.
        keep_global_tokens: Keep ``global_tokens``, and a ``pos_embed`` for patches only. By
            default the single global token becomes ``cls_token``, with zeros in ``pos_embed``.

    Raises:
        ValueError: Not a MultiMAE, no such image input, or several global tokens.
    """
    adapter = f"input_adapters.{modality}."
    _check_multimae(state, adapter)
    tokens = state["global_tokens"]
    table = state[adapter + "pos_emb"].flatten(2).transpose(1, 2)  # (1, h*w, D)
    out: dict[str, Tensor] = {}
    if keep_global_tokens:
        out["global_tokens"], out["pos_embed"] = tokens, table.contiguous()
    elif tokens.shape[1] == 1:
        out["cls_token"] = tokens
        out["pos_embed"] = _with_zero_cls_position(table)
    else:
        raise ValueError(
            f"the model has {tokens.shape[1]} global tokens but a ViT has one cls_token: "
            "convert with keep_global_tokens=True"
        )
    unused = []
    for key, value in state.items():
        if key.startswith("encoder."):
            out["blocks." + key.removeprefix("encoder.")] = value
        elif key.startswith(adapter + "proj."):
            out["patch_embed." + key.removeprefix(adapter)] = value
        elif key not in ("global_tokens", adapter + "pos_emb"):
            unused.append(key)
    return Converted(out, tuple(unused))


def vit_to_multimae(
    state: Mapping[str, Tensor], *, modality: str = "rgb", grid: Size | None = None
) -> Converted:
    """Convert ViT weights (timm, MAE, or from :func:`multimae_to_vit`) to a MultiMAE of one input.

    The class token's position embedding is added to the token. Final norm, head and MAE's decoder
    are unused.

    Args:
        state: Weights of a ViT.
        modality: Name of the input adapter.
        grid: (rows, columns) of ``pos_embed``; only needed if it is not square.

    Raises:
        ValueError: Not a ViT, layers that MultiMAE lacks (layer scale, register tokens ...), or a
            position table that is not square.
    """
    if not is_vit_state_dict(state) or "pos_embed" not in state:
        raise ValueError(
            "not the weights of a ViT with timm's names: patch_embed.proj.weight, pos_embed and "
            f"blocks.* are needed; the keys begin with {', '.join(list(state)[:4])}"
        )
    table = state["pos_embed"]  # (1, [1 +] h*w, D)
    token = state.get(
        "global_tokens", state.get("cls_token", table.new_zeros(1, 0, table.shape[2]))
    )
    num_prefix, (h, w) = _table_grid(table.shape[1], "cls_token" in state, grid)
    out = {
        "global_tokens": token + table[:, :1] if num_prefix else token,
        f"input_adapters.{modality}.pos_emb": (
            table[:, num_prefix:].transpose(1, 2).reshape(1, -1, h, w).contiguous()
        ),
    }
    unused, foreign = [], []
    for key, value in state.items():
        layer = key.removeprefix("blocks.")
        if key.startswith("blocks.") and _LAYER.fullmatch(layer):
            out["encoder." + layer] = value
        elif key in _PATCH_PROJ:
            out[f"input_adapters.{modality}.{key.removeprefix('patch_embed.')}"] = value
        elif _FEATURES.match(key):
            foreign.append(key)
        elif key not in _TOKENS:
            unused.append(key)
    if foreign:
        raise ValueError(
            f"this ViT has parts that MultiMAE's encoder lacks: {', '.join(foreign[:4])}"
            f"{' ...' if len(foreign) > 4 else ''}; only plain ViTs convert"
        )
    return Converted(out, tuple(unused))


def _check_multimae(state: Mapping[str, Tensor], adapter: str) -> None:
    if "global_tokens" not in state or "encoder.0.norm1.weight" not in state:
        raise ValueError(
            "not the weights of a MultiMAE: global_tokens and encoder.* are needed; the keys "
            f"begin with {', '.join(list(state)[:4])}"
        )
    images = [
        key.split(".")[1]
        for key in state
        if key.startswith("input_adapters.")
        and key.endswith(".proj.weight")
        and key.replace("proj.weight", "class_emb.weight") not in state
    ]
    if adapter.split(".")[1] not in images:
        raise ValueError(
            f"no image input '{adapter.split('.')[1]}' in this MultiMAE; it has "
            f"{', '.join(images) or 'none'}"
        )


def _with_zero_cls_position(table: Tensor) -> Tensor:
    out = table.new_zeros(1, table.shape[1] + 1, table.shape[2])
    out[:, 1:] = table
    return out


def _table_grid(length: int, has_cls: bool, grid: Size | None) -> tuple[int, Size]:
    """Number of class-token entries in ``pos_embed`` (0 or 1), and the patch grid."""
    for num_prefix in (1, 0) if has_cls else (0,):
        patches = length - num_prefix
        side = math.isqrt(patches)
        h, w = grid or (side, side)
        if h * w == patches:
            return num_prefix, (h, w)
    problem = f"grid {grid[0]}x{grid[1]} does not match" if grid else "not a square grid for"
    raise ValueError(f"pos_embed: {problem} {length} rows; give its rows and columns as `grid`")
