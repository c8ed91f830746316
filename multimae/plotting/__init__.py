"""Pictures of images, predictions and attention maps.

``pictures.py`` draws one sample of any modality, ``grids.py`` a labelled grid of reconstructions,
``predictions.py`` a grid of inputs and predictions, ``attention.py`` attention maps;
``colours.py`` has colour maps and palettes. Start reading at ``pictures.py``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multimae.plotting.attention import attention_grid, attention_picture
    from multimae.plotting.colours import Picture, label_palette, scalar_colours
    from multimae.plotting.drawing import draw_legend, draw_scale, stack
    from multimae.plotting.grids import reconstruction_grid, tiles
    from multimae.plotting.pictures import error_picture, to_picture, with_void
    from multimae.plotting.predictions import prediction_grid

__all__ = [
    "Picture",
    "attention_grid",
    "attention_picture",
    "draw_legend",
    "draw_scale",
    "error_picture",
    "label_palette",
    "prediction_grid",
    "reconstruction_grid",
    "scalar_colours",
    "stack",
    "tiles",
    "to_picture",
    "with_void",
]

# Imported on first use (PEP 562): some modules do not need PyTorch.
_MODULES = {
    "Picture": "colours",
    "attention_grid": "attention",
    "attention_picture": "attention",
    "draw_legend": "drawing",
    "draw_scale": "drawing",
    "error_picture": "pictures",
    "label_palette": "colours",
    "prediction_grid": "predictions",
    "reconstruction_grid": "grids",
    "scalar_colours": "colours",
    "stack": "drawing",
    "tiles": "grids",
    "to_picture": "pictures",
    "with_void": "pictures",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
