"""Decoders and heads."""

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
