"""What the shapes of weights say about their model: for checkpoints that carry no description.

Covers the published pre-trained checkpoints and what is shaped like them: inputs named in the
default modality table, and decoders for these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from torch import Tensor

from multimae.specs.modalities import UNIT_16_BIT, Modality, default_table
from multimae.specs.registry import PRETRAIN, DecoderOptions, find_size
from multimae.specs.spec import ModelSpec

_INPUTS, _OUTPUTS = "input_adapters", "output_adapters"
_PUBLISHED_HEADS = 8


def guess_spec(state: Mapping[str, Tensor]) -> ModelSpec:
    """Description of a pre-trained model from its state dict.

    Not written in any shape, and taken as published: the normalisation of the inputs (depth
    standardised per sample, after division by 2^16), and 8 attention heads in the decoders.

    Raises:
        ValueError: Not the weights of a pre-trained MultiMAE of known size and modalities.
    """
    if "global_tokens" not in state:
        raise ValueError("they are not those of a MultiMAE")
    num_global, width = state["global_tokens"].shape[1:]
    inputs = [_row(name, state) for name in _names(state, _INPUTS)]
    outputs = [_row(name, state) for name in _names(state, _OUTPUTS)]
    if not inputs:
        raise ValueError("they have no input adapters")
    first = inputs[0]
    kernel = state[f"{_INPUTS}.{first.name}.proj.weight"].shape[-1]
    blocks = _count(state, "encoder")
    size = find_size(blocks, width)
    if size is None:
        raise ValueError(f"no registered size has {blocks} blocks of width {width}")
    grid = state[f"{_INPUTS}.{first.name}.pos_emb"].shape[-1]
    patch = kernel * first.stride
    return ModelSpec(
        name=f"{PRETRAIN}_{size}",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        patch_size=patch,
        image_size=grid * patch,
        num_global_tokens=num_global,
        decoder=_decoder(state, outputs[0].name) if outputs else DecoderOptions(),
    )


def _names(state: Mapping[str, Tensor], group: str) -> list[str]:
    """Names of the adapters of a group, in the file's order."""
    return list(dict.fromkeys(k.split(".")[1] for k in state if k.startswith(f"{group}.")))


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Blocks of a transformer."""
    start = prefix.count(".") + 1
    return len({k.split(".")[start] for k in state if k.startswith(f"{prefix}.")})


def _row(name: str, state: Mapping[str, Tensor]) -> Modality:
    """The default table's row, with the classes or channels of the weights."""
    table = default_table()
    if name not in table:
        raise ValueError(f"'{name}' is no modality of the default table ({', '.join(table)})")
    row = table[name]
    embedding = state.get(f"{_INPUTS}.{name}.class_emb.weight")
    if embedding is not None:
        classes, dim = embedding.shape
        return dataclasses.replace(row, num_classes=classes, dim_class_emb=dim)
    if row.plot == "scalar":
        return dataclasses.replace(row, normalization="robust", robust_unit=UNIT_16_BIT)
    return row


def _decoder(state: Mapping[str, Tensor], name: str) -> DecoderOptions:
    prefix = f"{_OUTPUTS}.{name}"
    if f"{prefix}.mask_token" not in state:
        raise ValueError(f"output '{name}' is no pre-training decoder: it is a fine-tuned model")
    dim = state[f"{prefix}.mask_token"].shape[-1]
    return DecoderOptions(
        dim=dim,
        depth=_count(state, f"{prefix}.decoder_transformer"),
        num_heads=math.gcd(_PUBLISHED_HEADS, dim),
        use_xattn=f"{prefix}.decoder.q.weight" in state,
    )
