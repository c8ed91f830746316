"""Registered model names, encoder sizes, and adapters of modalities.

A model name is ``KIND_SIZE``: ``pretrain_multimae_base``, ``multivit_tiny``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from multimae.input_adapters import InputAdapter, PatchedInputAdapter, SemSegInputAdapter
from multimae.nn.tokens import Size
from multimae.output_adapters.spatial import SpatialOutputAdapter
from multimae.specs.coercion import did_you_mean
from multimae.specs.modalities import Modality

# Base and large are the published sizes.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"dim_tokens": 192, "depth": 12, "num_heads": 3},
    "small": {"dim_tokens": 384, "depth": 12, "num_heads": 6},
    "base": {"dim_tokens": 768, "depth": 12, "num_heads": 12},
    "large": {"dim_tokens": 1024, "depth": 24, "num_heads": 16},
    "huge": {"dim_tokens": 1280, "depth": 32, "num_heads": 16},
}

PRETRAIN, MULTIVIT = "pretrain_multimae", "multivit"
KINDS = (PRETRAIN, MULTIVIT)


def model_names() -> list[str]:
    """List the registered names, ``pretrain_multimae_tiny`` to ``multivit_huge``."""
    return [f"{kind}_{size}" for kind in KINDS for size in SIZES]


def split_name(name: str) -> tuple[str, str]:
    """Split a registered name into kind and size.

    Raises:
        ValueError: Unknown name; the message suggests the nearest one.
    """
    kind, _, size = name.rpartition("_")
    if kind not in KINDS or size not in SIZES:
        known = model_names()
        near = did_you_mean(name, known)
        raise ValueError(f"unknown model '{name}'{near} Known: {', '.join(known)}")
    return kind, size


def encoder_shape(name: str) -> tuple[int, int]:
    """``(depth, dim)`` of a registered model.

    Raises:
        ValueError: Unknown name.
    """
    dims = SIZES[split_name(name)[1]]
    return dims["depth"], dims["dim_tokens"]


@dataclass(frozen=True)
class DecoderOptions:
    """Options shared by all pre-training decoders."""

    dim: int = 256
    depth: int = 2
    num_heads: int = 8
    use_task_queries: bool = True
    use_xattn: bool = True


def input_adapter(
    modality: Modality,
    patch_size: int | Size,
    image_size: int | Size,
    learnable_pos_emb: bool = False,
    emb_padding_idx: int | None = None,
) -> InputAdapter:
    """Build the input adapter of a modality.

    Args:
        modality: The modality.
        patch_size: The model's patch side, for a modality without one.
        image_size: Full-resolution size of the position table.
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


def input_adapters(
    modalities: Sequence[Modality],
    patch_size: int | Size,
    image_size: int | Size,
    learnable_pos_emb: bool = False,
    padding_class: bool = False,
) -> dict[str, InputAdapter]:
    """Build input adapters by modality name, in order.

    Args:
        modalities: Inputs.
        patch_size: Patch side of modalities without one.
        image_size: Full-resolution size of the position tables.
        learnable_pos_emb: Train the position tables.
        padding_class: Add class ``num_classes`` for padded pixels to label inputs; those with
            ``no_data`` always have it.
    """
    return {
        m.name: input_adapter(
            m,
            patch_size,
            image_size,
            learnable_pos_emb,
            m.num_classes if m.is_labels and (padding_class or m.no_data is not None) else None,
        )
        for m in modalities
    }


def spatial_output_adapter(
    modality: Modality,
    context_tasks: Sequence[str],
    patch_size: int | Size,
    image_size: int | Size,
    decoder: DecoderOptions,
) -> SpatialOutputAdapter:
    """Build the pre-training decoder of a modality; extra targets use their source's task."""
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


def spatial_output_adapters(
    modalities: Sequence[Modality],
    inputs: Sequence[Modality],
    patch_size: int | Size,
    image_size: int | Size,
    decoder: DecoderOptions,
) -> dict[str, SpatialOutputAdapter]:
    """Build pre-training decoders by modality name, for a model with these ``inputs``."""
    context = [m.name for m in inputs]
    return {
        m.name: spatial_output_adapter(m, context, patch_size, image_size, decoder)
        for m in modalities
    }
