"""From modality rows and options to adapters and models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, cast

from torch import nn

from multimae.input_adapters import InputAdapter, PatchedInputAdapter, SemSegInputAdapter
from multimae.modalities import Modality
from multimae.multimae import MultiMAE, MultiViT
from multimae.output_adapters.spatial import SpatialOutputAdapter
from multimae.tokens import Size

# Encoder sizes. Base and large are the published ones.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"dim_tokens": 192, "depth": 12, "num_heads": 3},
    "small": {"dim_tokens": 384, "depth": 12, "num_heads": 6},
    "base": {"dim_tokens": 768, "depth": 12, "num_heads": 12},
    "large": {"dim_tokens": 1024, "depth": 24, "num_heads": 16},
}

Builder = Callable[..., MultiMAE]

# Registered names, ``pretrain_multimae_tiny`` to ``multivit_large``: called with the adapters.
BUILDERS: dict[str, Builder] = {
    f"{prefix}_{size}": partial(kind, **dims)
    for prefix, kind in (("pretrain_multimae", MultiMAE), ("multivit", MultiViT))
    for size, dims in cast(dict[str, dict[str, Any]], SIZES).items()
}


@dataclass(frozen=True)
class DecoderOptions:
    """Shape of the pre-training decoders (all alike)."""

    dim: int = 256
    depth: int = 2
    num_heads: int = 8
    use_task_queries: bool = True
    use_xattn: bool = True


def find_builder(name: str) -> Builder:
    """Model builder by registered name.

    Raises:
        ValueError: Unknown name; the message suggests the nearest.
    """
    if name not in BUILDERS:
        near = get_close_matches(name, BUILDERS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"unknown model '{name}'{hint} Known: {', '.join(BUILDERS)}")
    return BUILDERS[name]


def encoder_shape(name: str) -> tuple[int, int]:
    """``(depth, dim)`` of a registered model.

    Raises:
        ValueError: Unknown name.
    """
    keywords = cast(partial[MultiMAE], find_builder(name)).keywords
    return keywords["depth"], keywords["dim_tokens"]


def input_adapter(
    modality: Modality,
    patch_size: int | Size,
    image_size: int | Size,
    learnable_pos_emb: bool = False,
    emb_padding_idx: int | None = None,
) -> InputAdapter:
    """Input adapter of a modality.

    Args:
        modality: Its row.
        patch_size: The model's patch side, where the row names none.
        image_size: Full-resolution size for the position table.
        learnable_pos_emb: Train the position table.
        emb_padding_idx: Padding class of label maps.
    """
    patch = modality.patch_size or patch_size
    if modality.is_labels:
        return SemSegInputAdapter(
            num_classes=modality.num_classes,
            stride_level=modality.stride,
            patch_size_full=patch,
            learnable_pos_emb=learnable_pos_emb,
            image_size=image_size,
            dim_class_emb=modality.dim_class_emb,
            emb_padding_idx=emb_padding_idx,
        )
    return PatchedInputAdapter(
        num_channels=modality.num_channels,
        stride_level=modality.stride,
        patch_size_full=patch,
        learnable_pos_emb=learnable_pos_emb,
        image_size=image_size,
    )


def spatial_output_adapter(
    modality: Modality,
    context_tasks: Sequence[str],
    patch_size: int | Size,
    image_size: int | Size,
    decoder: DecoderOptions,
) -> SpatialOutputAdapter:
    """Pre-training decoder of a modality (or of an extra target, by its ``source``'s task)."""
    return SpatialOutputAdapter(
        num_channels=modality.out_channels,
        stride_level=modality.stride,
        patch_size_full=modality.patch_size or patch_size,
        dim_tokens=decoder.dim,
        depth=decoder.depth,
        image_size=image_size,
        num_heads=decoder.num_heads,
        use_task_queries=decoder.use_task_queries,
        task=modality.data_name,
        context_tasks=context_tasks,
        use_xattn=decoder.use_xattn,
    )


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
    """MultiMAE with one spatial decoder per output.

    Args:
        name: Registered builder, e.g. ``pretrain_multimae_base``.
        inputs: Rows of the inputs, in sequence order.
        outputs: Rows of the targets.
        patch_size: Patch side where a row names none.
        image_size: Full-resolution size for the position tables.
        num_global_tokens: Learned global tokens.
        drop_path_rate: Stochastic depth of the encoder.
        decoder: Shape of the decoders.

    Raises:
        ValueError: Unknown name.
    """
    context = [m.name for m in inputs]
    options = decoder or DecoderOptions()
    return find_builder(name)(
        input_adapters={m.name: input_adapter(m, patch_size, image_size) for m in inputs},
        output_adapters={
            m.name: spatial_output_adapter(m, context, patch_size, image_size, options)
            for m in outputs
        },
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
    """MultiViT with heads, for fine-tuning.

    Args:
        name: Registered builder, e.g. ``multivit_base``.
        inputs: Rows of the inputs, in sequence order.
        heads: Output name -> head.
        patch_size: Patch side where a row names none.
        image_size: Full-resolution size for the position tables.
        num_global_tokens: Learned global tokens.
        drop_rate: Dropout of projections and MLPs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the encoder.
        learnable_pos_emb: Train the position tables.
        padding_class: Label inputs have one class more, ``num_classes``, where images are padded.

    Raises:
        ValueError: Unknown name, or a builder of models that mask.
    """
    adapters = {
        m.name: input_adapter(
            m,
            patch_size,
            image_size,
            learnable_pos_emb,
            m.num_classes if padding_class and m.is_labels else None,
        )
        for m in inputs
    }
    model = find_builder(name)(
        input_adapters=adapters,
        output_adapters=dict(heads),
        num_global_tokens=num_global_tokens,
        drop_rate=drop_rate,
        attn_drop_rate=attn_drop_rate,
        drop_path_rate=drop_path_rate,
    )
    if not isinstance(model, MultiViT):
        raise ValueError(f"model {name} masks its inputs; fine-tuning needs a multivit_*")
    return model
