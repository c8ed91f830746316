"""MultiMAE: multi-modal multi-task masked autoencoders."""

from multimae.modalities import Modality, default_table, make_table
from multimae.multimae import MultiMAE, MultiViT

__all__ = ["Modality", "MultiMAE", "MultiViT", "default_table", "make_table"]
