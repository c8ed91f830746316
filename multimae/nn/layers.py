"""Transformer layers: attention, cross-attention, MLP, block, drop-path, initialisation.

Shapes: b batch, n queries, m keys, d width, h heads, e head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LayerNorm = partial(nn.LayerNorm, eps=1e-6)
NormLayer = Callable[[int], nn.Module]


def attend(q_bhne: Tensor, k_bhme: Tensor, v_bhme: Tensor, dropout: float = 0.0) -> Tensor:
    """Softmax attention with scale ``1/sqrt(e)``.

    Uses plain matrix products for training on a CPU, where their backward pass is faster, and the
    fused kernel otherwise. Results agree up to rounding.

    Returns:
        (b, h, n, e).
    """
    if q_bhne.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q_bhne, k_bhme, v_bhme, dropout_p=dropout)
    weights = (q_bhne / math.sqrt(q_bhne.shape[-1])) @ k_bhme.transpose(-2, -1)
    weights = weights.softmax(dim=-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights.to(v_bhme.dtype) @ v_bhme


class Attention(nn.Module):
    """Multi-head self-attention with a fused ``qkv`` projection."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        """Width ``dim`` must be a multiple of ``num_heads``."""
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x_bnd: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        b, n, d = x_bnd.shape
        qkv = self.qkv(x_bnd).view(b, n, 3, self.num_heads, d // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = attend(q, k, v, self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, n, d)))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Multi-head cross-attention with projections ``q``, ``kv`` and ``proj``."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        """Width ``dim`` must be a multiple of ``num_heads``."""
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, dim * 2, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x_bnd: Tensor, context_bmd: Tensor) -> Tensor:
        """(b, n, d), (b, m, d) -> (b, n, d)."""
        b, n, d = x_bnd.shape
        m, e = context_bmd.shape[1], d // self.num_heads
        q = self.q(x_bnd).view(b, n, self.num_heads, e).transpose(1, 2)
        kv = self.kv(context_bmd).view(b, m, 2, self.num_heads, e).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)
        x = attend(q, k, v, self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, n, d)))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with exact GELU."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        """``dim`` -> ``hidden_dim`` -> ``dim``."""
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.drop(self.fc2(self.act(self.fc1(x))))  # type: ignore[no-any-return]


class DropPath(nn.Module):
    """Stochastic depth per sample (Huang et al. 2016); kept branches are scaled by ``1/(1-p)``."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        """``drop_prob``: probability that a sample skips the branch in training."""
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples (dim 0) of ``x``; the identity in evaluation."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1.0 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)


class Block(nn.Module):
    """Pre-norm transformer block: ``x += attn(norm1(x)); x += mlp(norm2(x))``."""

    recompute: dict[str, Any] | None = None  # options of checkpoint(); None: not used

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_layer: NormLayer = LayerNorm,
    ) -> None:
        """See :class:`Attention` and :class:`Mlp` for the widths."""
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, num_heads, qkv_bias, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        if self.recompute is None or not torch.is_grad_enabled():
            return self._forward(x)
        return checkpoint(self._forward, x, use_reentrant=False, **self.recompute)  # type: ignore[no-any-return]

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Drop-path probabilities growing linearly from 0 to ``rate`` over ``depth`` blocks."""
    return [rate * i / max(1, depth - 1) for i in range(depth)]


def trunc_normal_(tensor: Tensor, std: float = 0.02) -> Tensor:
    """Truncated normal (cut at +-2 absolute, as in ViT), in place."""
    return nn.init.trunc_normal_(tensor, std=std)


def init_transformer_weights(root: nn.Module) -> None:
    """Initialise every Linear, LayerNorm and attention below ``root``.

    Linear layers get Xavier-uniform weights and zero bias; fused ``qkv`` and ``kv`` count as three
    and two separate matrices. Convolutions and batch norms keep torch's defaults (patch
    projections are initialised by their adapters).
    """
    for module in root.modules():
        if isinstance(module, nn.Linear):
            xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for module in root.modules():
        if isinstance(module, Attention):
            xavier_uniform_(module.qkv.weight, fused=3)
        elif isinstance(module, CrossAttention):
            xavier_uniform_(module.kv.weight, fused=2)


def xavier_uniform_(weight: Tensor, fused: int = 1) -> Tensor:
    """Xavier-uniform over (out, in): bound ``sqrt(6 / (out/fused + in))``; in place.

    A convolution weight (out, in, kh, kw) is treated as a Linear layer over its receptive field.
    """
    fan_out, fan_in = weight.shape[0] // fused, weight[0].numel()
    bound = math.sqrt(6.0 / (fan_out + fan_in))
    return nn.init.uniform_(weight, -bound, bound)


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ValueError(f"width {dim} is not divisible by {num_heads} attention heads")
