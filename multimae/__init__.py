"""MultiMAE: multi-modal multi-task masked autoencoders."""

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
