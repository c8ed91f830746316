"""MultiMAE: multi-modal multi-task masked autoencoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimae.lazy import loaded_on_use

if TYPE_CHECKING:
    from multimae.modalities import Modality, default_table, make_table
    from multimae.multimae import MultiMAE, MultiViT
    from multimae.pretrained import read_spec, save_model
    from multimae.spec import ModelSpec
    from multimae.weight_files import CheckpointError

__all__ = [
    "CheckpointError",
    "Modality",
    "ModelSpec",
    "MultiMAE",
    "MultiViT",
    "default_table",
    "make_table",
    "read_spec",
    "save_model",
]

__getattr__ = loaded_on_use(
    __name__,
    {
        "multimae.modalities": (
            "Modality",
            "default_table",
            "make_table",
        ),
        "multimae.multimae": (
            "MultiMAE",
            "MultiViT",
        ),
        "multimae.pretrained": (
            "read_spec",
            "save_model",
        ),
        "multimae.spec": ("ModelSpec",),
        "multimae.weight_files": ("CheckpointError",),
    },
)
