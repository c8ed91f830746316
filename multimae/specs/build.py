"""Build models from modalities and options, by registered name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from torch import nn

from multimae.multimae import MultiMAE, MultiViT
from multimae.nn.tokens import Size
from multimae.specs.modalities import Modality
from multimae.specs.registry import (
    MULTIVIT,
    PRETRAIN,
    SIZES,
    DecoderOptions,
    input_adapters,
    spatial_output_adapters,
    split_name,
)

Builder = Callable[..., MultiMAE]

_CLASSES: dict[str, type[MultiMAE]] = {PRETRAIN: MultiMAE, MULTIVIT: MultiViT}


def find_builder(name: str) -> Builder:
    """Return the model class of a registered name, with its size bound.

    Raises:
        ValueError: Unknown name; the message suggests the nearest one.
    """
    kind, size = split_name(name)
    return partial(_CLASSES[kind], **cast(dict[str, Any], SIZES[size]))


def build_pretrain_model(
    name: str,
    inputs: Sequence[Modality],
    outputs: Sequence[Modality],
    patch_size: int = 16,
    image_size: int | Size = 224,
    num_global_tokens: int = 1,
    drop_path_rate: float = 0.0,
    decoder: DecoderOptions | None = None,
) -> MultiMAE:
    """Build a MultiMAE with one spatial decoder per output.

    Args:
        name: Registered name, e.g. ``pretrain_multimae_base``.
        inputs: Input modalities, in sequence order.
        outputs: Target modalities.
        patch_size: Patch side of modalities without one.
        image_size: Full-resolution size of the position tables.
        num_global_tokens: Number of learned global tokens.
        drop_path_rate: Stochastic depth rate of the encoder.
        decoder: Decoder options.

    Raises:
        ValueError: Unknown name.
    """
    return find_builder(name)(
        input_adapters=input_adapters(inputs, patch_size, image_size),
        output_adapters=spatial_output_adapters(
            outputs, inputs, patch_size, image_size, decoder or DecoderOptions()
        ),
        num_global_tokens=num_global_tokens,
        drop_path_rate=drop_path_rate,
    )


def build_multivit(
    name: str,
    inputs: Sequence[Modality],
    heads: Mapping[str, nn.Module],
    patch_size: int = 16,
    image_size: int | Size = 224,
    num_global_tokens: int = 1,
    *,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    learnable_pos_emb: bool = False,
    padding_class: bool = False,
) -> MultiViT:
    """Build a MultiViT with heads, for fine-tuning.

    Args:
        name: Registered name, e.g. ``multivit_base``.
        inputs: Input modalities, in sequence order.
        heads: Output name -> head.
        patch_size: Patch side of modalities without one.
        image_size: Full-resolution size of the position tables.
        num_global_tokens: Number of learned global tokens.
        drop_rate: Dropout of projections and MLPs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth rate of the encoder.
        learnable_pos_emb: Train the position tables.
        padding_class: Add class ``num_classes`` for padded pixels to label inputs.

    Raises:
        ValueError: Unknown name, or not a ``multivit_*``.
    """
    model = find_builder(name)(
        input_adapters=input_adapters(
            inputs, patch_size, image_size, learnable_pos_emb, padding_class
        ),
        output_adapters=dict(heads),
        num_global_tokens=num_global_tokens,
        drop_rate=drop_rate,
        attn_drop_rate=attn_drop_rate,
        drop_path_rate=drop_path_rate,
    )
    if not isinstance(model, MultiViT):
        raise ValueError(f"model {name} is for pre-training; fine-tuning needs a multivit_*")
    return model
