"""From rows of the modality table to input adapters and pre-training decoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from multimae.input_adapters import InputAdapter, PatchedInputAdapter, SemSegInputAdapter
from multimae.nn.tokens import Size
from multimae.output_adapters.spatial import SpatialOutputAdapter
from multimae.specs.modalities import Modality


@dataclass(frozen=True)
class DecoderOptions:
    """Shape of the pre-training decoders (all alike)."""

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


def input_adapters(
    rows: Sequence[Modality],
    patch_size: int | Size,
    image_size: int | Size,
    learnable_pos_emb: bool = False,
    padding_class: bool = False,
) -> dict[str, InputAdapter]:
    """Input adapters of rows, in order, by name.

    Args:
        rows: The inputs.
        patch_size: Patch side where a row names none.
        image_size: Full-resolution size for the position tables.
        learnable_pos_emb: Train the position tables.
        padding_class: Label inputs have one class more, ``num_classes``, where images are padded;
            those with ``no_data`` have it in any case.
    """
    return {
        m.name: input_adapter(
            m,
            patch_size,
            image_size,
            learnable_pos_emb,
            m.num_classes if m.is_labels and (padding_class or m.no_data is not None) else None,
        )
        for m in rows
    }


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


def spatial_output_adapters(
    rows: Sequence[Modality],
    inputs: Sequence[Modality],
    patch_size: int | Size,
    image_size: int | Size,
    decoder: DecoderOptions,
) -> dict[str, SpatialOutputAdapter]:
    """Pre-training decoders of rows, by name, for a model with these ``inputs``."""
    context = [m.name for m in inputs]
    return {
        m.name: spatial_output_adapter(m, context, patch_size, image_size, decoder) for m in rows
    }
