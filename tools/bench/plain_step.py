"""The pre-training step, implemented literally after SPEC.md: baseline of the benchmark.

No work is skipped: all patches are projected, all position tables resized, every decoder builds
its full-length context, and losses are computed on images. The parameters are those of a
:class:`multimae.multimae.MultiMAE`.

Shapes: b batch, n visible tokens, N tokens of all modalities, g global tokens, d width, h heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae.input_adapters import SemSegInputAdapter
from multimae.multimae import MultiMAE
from multimae.nn.layers import Attention, CrossAttention, Mlp
from multimae.nn.masking import TokenMasks
from multimae.nn.tokens import TokenLayout
from multimae.specs.modalities import Modality


class PlainMultiMAE(nn.Module):
    """Predicts images from images and masks, and computes the losses."""

    def __init__(self, model: MultiMAE, outputs: Sequence[Modality], patch_size: int) -> None:
        """``outputs`` are the target modalities; the parameters of ``model`` are shared."""
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)
        self.patch_size = patch_size

    def forward(
        self, x: Mapping[str, Tensor], layout: TokenLayout, masks: TokenMasks
    ) -> dict[str, Tensor]:
        """Predictions (b, C, H/s, W/s) by output."""
        tokens = torch.cat(
            [embed(adapter, x[name]) for name, adapter in self.model.input_adapters.items()
             if name in x], dim=1
        )  # fmt: skip
        tokens = gather(tokens, masks.ids_keep)
        tokens = torch.cat([tokens, self.model.global_tokens.expand(len(tokens), -1, -1)], dim=1)
        for block in self.model.encoder:
            tokens = transform(block, tokens)
        return {
            m.name: decode(self.model.output_adapters[m.name], tokens, layout, masks)
            for m in self.outputs
        }

    def losses(
        self, predicted: Mapping[str, Tensor], x: Mapping[str, Tensor], masks: TokenMasks
    ) -> dict[str, Tensor]:
        """Masked loss of every output, computed on images."""
        return {
            m.name: image_loss(
                m, predicted[m.name].float(), x[m.name], masks.task_masks.get(m.data_name),
                (m.patch_size or self.patch_size) // m.stride,
            )
            for m in self.outputs
        }  # fmt: skip


def embed(adapter: Any, x: Tensor) -> Tensor:
    """Section 1: all patches of one modality, (b, N_m, d)."""
    labels = isinstance(adapter, SemSegInputAdapter)
    if labels:
        x = adapter.class_emb(x).permute(0, 3, 1, 2)
    x = adapter.proj(x)
    mode = "bilinear" if labels else "bicubic"
    table = F.interpolate(adapter.pos_emb, size=x.shape[-2:], mode=mode, align_corners=False)
    return (x.flatten(2) + table.flatten(2)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention in three lines; all (b, tokens, d)."""
    b, e = len(q), q.shape[-1] // heads
    q, k, v = (t.reshape(b, -1, heads, e).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    out: Tensor = weights @ v
    return out.transpose(1, 2).flatten(2)


def attention(layer: Attention | CrossAttention, x: Tensor, context: Tensor) -> Tensor:
    """Self-attention (``qkv``) or cross-attention (``q``, ``kv``)."""
    if isinstance(layer, Attention):
        q, k, v = project(layer.qkv, x).chunk(3, dim=-1)
    else:
        q, (k, v) = project(layer.q, x), project(layer.kv, context).chunk(2, dim=-1)
    return project(layer.proj, attend(q, k, v, layer.num_heads))


def mlp(layer: Mlp, x: Tensor) -> Tensor:
    """Two linear layers with exact GELU."""
    return project(layer.fc2, F.gelu(project(layer.fc1, x)))


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer."""
    return F.linear(x, layer.weight, layer.bias)


def transform(block: Any, x: Tensor) -> Tensor:
    """Section 2: one pre-norm block."""
    normed = block.norm1(x)
    x = x + block.drop_path(attention(block.attn, normed, normed))
    return x + block.drop_path(mlp(block.mlp, block.norm2(x)))  # type: ignore[no-any-return]


def decode(decoder: Any, encoded: Tensor, layout: TokenLayout, masks: TokenMasks) -> Tensor:
    """Section 3, steps 1 to 6."""
    num_encoded, grid = masks.ids_keep.shape[1], decoder.grid(layout)
    c = project(decoder.proj_context, encoded)
    visible, global_tokens = c[:, :num_encoded], c[:, num_encoded:]
    masked = decoder.mask_token.expand(len(c), masks.ids_restore.shape[1] - num_encoded, -1)
    full = gather(torch.cat([visible, masked.to(c.dtype)], dim=1), masks.ids_restore)
    parts = {}
    for name, part in layout.slices.items():
        tokens = full[:, part.start : part.stop] + position(decoder, part.grid)
        if name in decoder.task_embeddings:
            tokens = tokens + decoder.task_embeddings[name]
        parts[name] = tokens
    if decoder.use_task_queries and decoder.task in parts:
        x = parts[decoder.task]
    else:
        x = decoder.mask_token + position(decoder, grid)
        if decoder.task in decoder.task_embeddings:
            x = x + decoder.task_embeddings[decoder.task]
        x = x.expand(len(c), -1, -1)
    if decoder.use_xattn:
        context = gather(torch.cat(list(parts.values()), dim=1), masks.ids_keep)
        context = torch.cat([context, global_tokens.to(context.dtype)], dim=1)
        x = attention(decoder.decoder, decoder.query_norm(x), decoder.context_norm(context))
        x = x + mlp(decoder.mlp, decoder.out_norm(x))
    for block in decoder.decoder_transformer:
        x = transform(block, x)
    return fold(project(decoder.out_proj, x), grid, decoder.patch_size)


def position(decoder: Any, grid: tuple[int, int]) -> Tensor:
    """A decoder's position table on ``grid``: (1, tokens, d)."""
    table = F.interpolate(decoder.pos_emb, size=grid, mode="bilinear", align_corners=False)
    return table.flatten(2).transpose(1, 2)


def image_loss(
    modality: Modality, predicted: Tensor, target: Tensor, mask: Tensor | None, patch: int
) -> Tensor:
    """Section 4: masked mean of the per-pixel loss; ``predicted`` is (b, C, H, W)."""
    if modality.loss == "cross_entropy":
        loss = F.cross_entropy(predicted, target, reduction="none")
    else:
        if modality.norm_pix:
            target = standardize(target, patch)
        difference = predicted - target
        loss = (difference.abs() if modality.loss == "l1" else difference**2).mean(dim=1)
    if mask is None:
        return loss.mean()
    if not mask.any():
        return (predicted * 0).sum()
    height, width = loss.shape[-2:]
    image = mask.view(-1, 1, height // patch, width // patch).float()
    image = F.interpolate(image, size=(height, width), mode="nearest").squeeze(1)
    per_sample = (loss * image).flatten(1).sum(dim=1) / image.flatten(1).sum(dim=1)
    counted = image.flatten(1).any(dim=1)
    return per_sample[counted].mean()


def standardize(image: Tensor, patch: int) -> Tensor:
    """Standardize every patch to mean 0 and (unbiased) variance 1."""
    b, c, height, width = image.shape
    grid = (height // patch, width // patch)
    patches = image.reshape(b, c, grid[0], patch, grid[1], patch).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(b, grid[0] * grid[1], c * patch * patch)
    mean, var = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    return fold((patches - mean) / (var + 1e-6) ** 0.5, grid, (patch, patch))


def fold(patches: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """(b, t, C*P*P), entries (channel, row, column) -> (b, C, H, W)."""
    b, (rows, columns), (ph, pw) = len(patches), grid, patch
    image = patches.view(b, rows, columns, -1, ph, pw).permute(0, 3, 1, 4, 2, 5)
    return image.reshape(b, -1, rows * ph, columns * pw)


def gather(x_bnd: Tensor, ids_bm: Tensor) -> Tensor:
    """Select tokens by index: (b, n, d), (b, m) -> (b, m, d)."""
    return x_bnd.gather(1, ids_bm.unsqueeze(-1).expand(-1, -1, x_bnd.shape[-1]))
