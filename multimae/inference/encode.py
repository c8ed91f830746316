"""Encoder features: tokens, pooled vectors, feature maps and attention maps.

Shapes: B batch, N tokens of all modalities, g global tokens, d encoder width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.images.inputs import Inputs
from multimae.nn.network import MultiModalTransformer
from multimae.nn.tokens import TokenLayout

Pool = Literal["mean", "global", "mean_global"]


@dataclass(frozen=True)
class Encoding:
    """Encoder tokens of a batch, after the selected blocks.

    Attributes:
        layers: One (B, N+g, d) per selected block; global tokens last.
        layout: Layout of the sequence.
    """

    layers: tuple[Tensor, ...]
    layout: TokenLayout

    def tokens(self, modality: str, layer: int = -1) -> Tensor:
        """Tokens of one modality, (B, N_m, d), row-major.

        Raises:
            KeyError: The modality was not an input.
        """
        part = self.layout.slices[modality]
        return self.layers[layer][:, part.start : part.stop]

    def feature_map(self, modality: str, layer: int = -1) -> Tensor:
        """Tokens of one modality on their grid, (B, d, rows, columns)."""
        tokens = self.tokens(modality, layer)
        rows, columns = self.layout.slices[modality].grid
        return tokens.transpose(1, 2).reshape(*tokens.shape[::2], rows, columns)

    def global_tokens(self, layer: int = -1) -> Tensor:
        """The global tokens, (B, g, d)."""
        return self.layers[layer][:, self.layout.num_task_tokens :]

    def pooled(self, pool: Pool = "mean", *, token_norm: bool = False) -> Tensor:
        """One float32 vector per sample; layers are concatenated.

        Args:
            pool: ``mean`` of the patch tokens, mean of the ``global`` tokens, or both concatenated
                (``mean_global``).
            token_norm: Apply LayerNorm without weights to every token first.

        Returns:
            (B, layers * d), or twice as wide for ``mean_global``.

        Raises:
            ValueError: Unknown ``pool``, or the model has no global tokens.
        """
        if pool not in get_args(Pool):
            raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}; got {pool!r}")
        if pool != "mean" and not self.layout.num_global_tokens:
            raise ValueError(f"pool={pool!r}: the model has no global tokens; use 'mean'")
        patches = self.layout.num_task_tokens
        parts = []
        for tokens in self.layers:
            tokens = tokens.float()
            if token_norm:
                tokens = F.layer_norm(tokens, tokens.shape[-1:])
            if pool != "global":
                parts.append(tokens[:, :patches].mean(dim=1))
            if pool != "mean":
                parts.append(tokens[:, patches:].mean(dim=1))
        return torch.cat(parts, dim=1)


def encode(
    model: MultiModalTransformer, inputs: Inputs, layers: int | Sequence[int] = 1
) -> Encoding:
    """Encode a batch without masking.

    Args:
        model: The encoder.
        inputs: The batch.
        layers: Last n blocks, or block indices (negative indices count from the end).

    Raises:
        ValueError: Block index out of range.
    """
    depth = len(model.encoder)
    chosen = list(range(depth - layers, depth)) if isinstance(layers, int) else list(layers)
    lowest = 0 if isinstance(layers, int) else -depth
    if not chosen or not all(lowest <= i < depth for i in chosen):
        raise ValueError(f"layers = {layers}: the encoder has blocks 0..{depth - 1}")
    tokens, layout = model.embed(inputs.x)
    every = model.encode_layers(tokens)
    return Encoding(tuple(every[i] for i in chosen), layout)


@torch.inference_mode()
def attention_maps(
    model: MultiModalTransformer, inputs: Inputs, query: tuple[str, int, int], layer: int = -1
) -> dict[str, Tensor]:
    """Attention of one patch token to all tokens, averaged over heads, without masking.

    Args:
        model: The encoder.
        inputs: The batch.
        query: Modality, row and column of the patch, in patches.
        layer: Block index.

    Returns:
        Modality -> (B, rows, columns), on the CPU. Together with the attention to the global
        tokens, the maps of a sample sum to 1.

    Raises:
        ValueError: Patch or block out of range.
    """
    depth = len(model.encoder)
    if not -depth <= layer < depth:
        raise ValueError(f"layer = {layer}: the encoder has blocks 0..{depth - 1}")
    tokens, layout = model.embed(inputs.x)
    name, row, column = query
    part = layout.slices.get(name)
    if part is None or not (0 <= row < part.grid[0] and 0 <= column < part.grid[1]):
        grids = ", ".join(f"{n} {s.grid[0]} x {s.grid[1]}" for n, s in layout.slices.items())
        raise ValueError(f"query = {query}: no such patch; the grids are {grids}")
    layer %= depth
    x = model.with_global_tokens(tokens)
    for i in range(layer):
        x = model.encoder[i](x)
    last: Any = model.encoder[layer]
    attention = last.attn
    b, n, d = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(last.norm1(x)).view(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    index = part.start + row * part.grid[1] + column
    scores = (qkv[0][:, :, index : index + 1] @ qkv[1].transpose(-2, -1)).squeeze(2)
    weights = (scores.float() / math.sqrt(d // heads)).softmax(dim=-1).mean(dim=1).cpu()
    return {m: weights[:, s.start : s.stop].reshape(-1, *s.grid) for m, s in layout.slices.items()}
