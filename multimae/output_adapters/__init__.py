"""Decoders and heads: tokens -> predictions (SPEC section 3).

``spatial.py`` is the pre-training decoder. ``linear.py`` classifies; ``segmenter.py``,
``convnext.py`` and ``dpt.py`` predict maps from the tokens that ``features.py`` selects. Start
reading at ``spatial.py``; ``multimae/specs/heads.py`` chooses widths for every encoder.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multimae.output_adapters.convnext import ConvNeXtAdapter
    from multimae.output_adapters.dpt import DPTOutputAdapter, dpt_defaults
    from multimae.output_adapters.linear import LinearOutputAdapter
    from multimae.output_adapters.segmenter import SegmenterMaskTransformerAdapter
    from multimae.output_adapters.spatial import SpatialOutputAdapter

__all__ = [
    "ConvNeXtAdapter",
    "DPTOutputAdapter",
    "LinearOutputAdapter",
    "SegmenterMaskTransformerAdapter",
    "SpatialOutputAdapter",
    "dpt_defaults",
]

# Imported on first use (PEP 562): pre-training loads no heads.
_MODULES = {
    "ConvNeXtAdapter": "convnext",
    "DPTOutputAdapter": "dpt",
    "LinearOutputAdapter": "linear",
    "SegmenterMaskTransformerAdapter": "segmenter",
    "SpatialOutputAdapter": "spatial",
    "dpt_defaults": "dpt",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
