"""Entry points of ``torch.hub``.

    model = torch.hub.load("path/to/clone", "multimae_tiny_rooms", source="local")
    model = torch.hub.load("path/to/clone", "multimae", "path/or/repository", source="local")

Models are in evaluation mode and carry their description, ``model.spec``.
"""

from functools import partial as _partial
from pathlib import Path as _Path
from typing import Any as _Any

from multimae import MultiMAE as _MultiMAE

dependencies = ["torch", "einops", "huggingface_hub", "numpy", "PIL", "safetensors"]

_WEIGHTS = _Path(__file__).resolve().parent / "weights"


def multimae(location: str, **options: _Any) -> _MultiMAE:
    """The model of a weight file, a model folder or a Hugging Face repository.

    Args:
        location: See ``MultiMAE.from_pretrained``.
        **options: Its other arguments: ``spec``, ``revision``, ``token``, ``cache_dir`` ...

    Raises:
        CheckpointError: Not found, unreadable, or weights that do not fit their description.
    """
    return _MultiMAE.from_pretrained(location, **options)


def _shipped(name: str, summary: str) -> _Any:
    """An entry point for ``weights/NAME.safetensors``."""
    load = _partial(multimae, str(_WEIGHTS / f"{name}.safetensors"))
    load.__doc__ = f"{summary}\n\nSee weights/README.md. Arguments are those of ``multimae``."
    return load


multimae_tiny_rooms = _shipped("multimae-tiny_rooms", "Tiny MultiMAE of rgb, depth and labels.")
multimae_tiny_rooms_semseg = _shipped(
    "multimae-tiny_rooms-semseg", "Tiny segmentation model: 40 classes of rooms from rgb."
)
