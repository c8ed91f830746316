"""MultiMAE: multi-modal multi-task masked autoencoders.

The model is in ``multimae.py``, its adapters in ``input_adapters.py`` and ``output_adapters/``, its
losses in ``criterion.py``. ``nn/`` has layers and masking, ``specs/`` specs of models and
modalities, ``images/`` reads files, ``weights/`` loads and saves weights, ``inference/`` encodes,
reconstructs and predicts, ``plotting/`` draws pictures. Start reading at ``multimae.py``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multimae.multimae import MultiMAE, MultiViT
    from multimae.specs.modalities import Modality, default_table, make_table
    from multimae.specs.spec import ModelSpec
    from multimae.weights.files import CheckpointError
    from multimae.weights.model_files import read_spec
    from multimae.weights.pretrained import save_model

__all__ = [
    "CheckpointError",
    "Modality",
    "ModelSpec",
    "MultiMAE",
    "MultiViT",
    "__version__",
    "default_table",
    "make_table",
    "read_spec",
    "save_model",
]
__version__ = "0.2.0"

# Imported on first use (PEP 562): commands that only read files start without PyTorch.
_MODULES = {
    "CheckpointError": "weights.files",
    "Modality": "specs.modalities",
    "ModelSpec": "specs.spec",
    "MultiMAE": "multimae",
    "MultiViT": "multimae",
    "default_table": "specs.modalities",
    "make_table": "specs.modalities",
    "read_spec": "weights.model_files",
    "save_model": "weights.pretrained",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
