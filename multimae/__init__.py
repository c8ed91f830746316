"""MultiMAE: multi-modal multi-task masked autoencoders."""

from multimae.modalities import Modality, default_table, make_table
from multimae.multimae import MultiMAE, MultiViT
from multimae.spec import ModelSpec, load_model

__all__ = [
    "Modality",
    "ModelSpec",
    "ModelSpec",
    "MultiMAE",
    "MultiViT",
    "default_table",
    "load_model",
    "make_table",
]
