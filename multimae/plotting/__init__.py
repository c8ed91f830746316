"""Pictures for people: one module for training logs, tools, the web page and the notebook.

``pictures`` one sample of any modality as RGB, ``grids`` reconstructions, ``predictions``
predictions beside the truth, ``attention`` where a patch looks, ``curves`` training curves (needs
matplotlib); ``colours`` and ``drawing`` are what these share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimae.lazy import loaded_on_use

if TYPE_CHECKING:
    from multimae.plotting.attention import attention_grid, attention_picture
    from multimae.plotting.colours import Picture, label_palette, scalar_colours
    from multimae.plotting.curves import figure
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
    "figure",
    "label_palette",
    "prediction_grid",
    "reconstruction_grid",
    "scalar_colours",
    "stack",
    "tiles",
    "to_picture",
    "with_void",
]

__getattr__ = loaded_on_use(
    __name__,
    {
        "multimae.plotting.attention": (
            "attention_grid",
            "attention_picture",
        ),
        "multimae.plotting.colours": (
            "Picture",
            "label_palette",
            "scalar_colours",
        ),
        "multimae.plotting.curves": ("figure",),
        "multimae.plotting.drawing": (
            "draw_legend",
            "draw_scale",
            "stack",
        ),
        "multimae.plotting.grids": (
            "reconstruction_grid",
            "tiles",
        ),
        "multimae.plotting.pictures": (
            "error_picture",
            "to_picture",
            "with_void",
        ),
        "multimae.plotting.predictions": ("prediction_grid",),
    },
)
