"""The pre-training decoder: visible tokens -> one image-like modality (SPEC section 3).

Shapes: b batch, n visible tokens, g global tokens, d decoder width, t tokens of this output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae.nn.layers import (
    Block,
    CrossAttention,
    LayerNorm,
    Mlp,
    NormLayer,
    drop_path_rates,
    trunc_normal_,
)
from multimae.nn.masking import gather_tokens
from multimae.nn.tokens import Size, TokenLayout, as_size, pos_emb_tokens, sincos_2d, unpatchify


class SpatialOutputAdapter(nn.Module):
    """Cross-attention decoder followed by a small transformer; one token per output patch.

    Args:
        num_channels: Channels C of the output (classes, for label maps).
        stride_level: The output is at ``1/stride_level`` of full resolution.
        patch_size_full: Patch side at full resolution, in pixels.
        dim_tokens_enc: Encoder width; usually set later by the model.
        dim_tokens: Decoder width d.
        depth: Self-attention blocks after the cross-attention.
        learnable_pos_emb: Train the position table.
        image_size: Full-resolution size of the position table.
        mlp_ratio: Hidden width of the MLPs over d.
        num_heads: Attention heads.
        qkv_bias: Biases in the attention projections.
        drop_rate: Dropout of projections and MLPs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the blocks, growing linearly.
        norm_layer: Normalisation constructor.
        use_task_queries: Queries start from this task's own context tokens if it is an input.
        task: Input modality of the queries (``norm_rgb``: rgb).
        context_tasks: Modalities with a task embedding.
        use_xattn: Cross-attend to the visible tokens; else skip cross-attention.
    """

    def __init__(
        self,
        num_channels: int,
        stride_level: int,
        patch_size_full: int | Size,
        dim_tokens_enc: int | None = None,
        dim_tokens: int = 256,
        depth: int = 0,
        learnable_pos_emb: bool = False,
        image_size: int | Size = 224,
        mlp_ratio: float = 4.0,
        num_heads: int = 8,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: NormLayer = LayerNorm,
        use_task_queries: bool = True,
        task: str | None = None,
        context_tasks: Sequence[str] | None = None,
        use_xattn: bool = True,
    ) -> None:
        """Build the decoder; the encoder-dependent projection is built by :meth:`init`."""
        super().__init__()
        self.num_channels = num_channels
        self.stride_level = stride_level
        ph, pw = as_size(patch_size_full)
        self.patch_size: Size = (max(1, ph // stride_level), max(1, pw // stride_level))
        self.use_task_queries = use_task_queries
        self.use_xattn = use_xattn
        self.task = task
        self.dim_tokens = dim_tokens
        self._init_tokens(as_size(image_size), context_tasks or (), learnable_pos_emb)
        if use_xattn:
            self.decoder = CrossAttention(
                dim_tokens, num_heads, qkv_bias, attn_drop_rate, drop_rate
            )
            self.context_norm = norm_layer(dim_tokens)
            self.query_norm = norm_layer(dim_tokens)
            self.out_norm = norm_layer(dim_tokens)
            self.mlp = Mlp(dim_tokens, int(dim_tokens * mlp_ratio))
        rates = drop_path_rates(drop_path_rate, depth)
        shape = (dim_tokens, num_heads, mlp_ratio, qkv_bias, drop_rate, attn_drop_rate)
        self.decoder_transformer = nn.Sequential(*(Block(*shape, r, norm_layer) for r in rates))
        patch_dim = num_channels * self.patch_size[0] * self.patch_size[1]
        self.out_proj = nn.Linear(dim_tokens, patch_dim)
        if dim_tokens_enc is not None:
            self.init(dim_tokens_enc)

    def _init_tokens(self, image_size: Size, context_tasks: Sequence[str], learnable: bool) -> None:
        """Mask token, task embeddings and position table."""

        def token() -> nn.Parameter:
            return nn.Parameter(trunc_normal_(torch.zeros(1, 1, self.dim_tokens)))

        self.mask_token = token()
        self.task_embeddings = nn.ParameterDict({name: token() for name in context_tasks})
        h, w = (
            max(1, side // (self.stride_level * patch))
            for side, patch in zip(image_size, self.patch_size, strict=True)
        )
        self.pos_emb = nn.Parameter(sincos_2d(h, w, self.dim_tokens), requires_grad=learnable)

    def init(self, dim_tokens_enc: int = 768) -> None:
        """Build the projection from the encoder's width."""
        self.proj_context = nn.Linear(dim_tokens_enc, self.dim_tokens)

    def grid(self, layout: TokenLayout) -> Size:
        """Token grid of the output for an image of the layout's size."""
        h, w = layout.image_size
        ph, pw = self.patch_size
        return h // (self.stride_level * ph), w // (self.stride_level * pw)

    def forward(
        self,
        encoder_tokens: Tensor,
        input_info: TokenLayout,
        ids_keep: Tensor,
        ids_restore: Tensor,
    ) -> Tensor:
        """Visible tokens (b, n+g, D) -> image (b, C, H/s, W/s).

        Args:
            encoder_tokens: Encoder output: visible tokens in ``ids_keep`` order, then globals.
            input_info: Layout of the full sequence.
            ids_keep: (b, n).
            ids_restore: (b, N).
        """
        patches = self.forward_patches(encoder_tokens, input_info, ids_keep, ids_restore)
        return unpatchify(patches, self.grid(input_info), self.patch_size)

    def forward_patches(
        self,
        encoder_tokens: Tensor,
        input_info: TokenLayout,
        ids_keep: Tensor,
        ids_restore: Tensor,
    ) -> Tensor:
        """As :meth:`forward`, but return patches (b, t, C*P*P), entries (channel, row, col)."""
        num_visible = ids_keep.shape[1]
        context = self.proj_context(encoder_tokens)
        visible, global_tokens = context[:, :num_visible], context[:, num_visible:]
        embedding = self._context_embedding(input_info).to(visible.dtype)  # (1, N, d)
        visible = visible + F.embedding(ids_keep, embedding[0])
        x = self._queries(visible, embedding, input_info, ids_restore)
        if self.use_xattn:
            context = torch.cat([visible, global_tokens], dim=1)
            x = self.decoder(self.query_norm(x), self.context_norm(context))
            x = x + self.mlp(self.out_norm(x))
        x = self.decoder_transformer(x)
        return self.out_proj(x)  # type: ignore[no-any-return]

    def _context_embedding(self, layout: TokenLayout) -> Tensor:
        """Position and task embedding of every token of the sequence: (1, N, d)."""
        parts = []
        for name, part in layout.slices.items():
            pos = pos_emb_tokens(self.pos_emb, part.grid, "bilinear")
            parts.append(pos + self.task_embeddings[name] if name in self.task_embeddings else pos)
        return torch.cat(parts, dim=1)

    def _queries(
        self, visible: Tensor, embedding: Tensor, layout: TokenLayout, ids_restore: Tensor
    ) -> Tensor:
        """Query tokens (b, t, d): this task's slice of the context, or mask tokens.

        Does not build the full-length context: masked positions gather a single mask token.
        """
        mask_token = self.mask_token.to(visible.dtype)
        grid = self.grid(layout)
        own = layout.slices.get(self.task or "")
        if self.use_task_queries and own is not None and own.grid == grid:
            part = slice(own.start, own.stop)
            padded = torch.cat([visible, mask_token.expand(visible.shape[0], -1, -1)], dim=1)
            index = ids_restore[:, part].clamp(max=visible.shape[1])
            masked = (index == visible.shape[1]).unsqueeze(-1)
            return gather_tokens(padded, index) + embedding[:, part] * masked
        positions = pos_emb_tokens(self.pos_emb, grid, "bilinear").to(visible.dtype)
        queries = mask_token + positions
        if self.task is not None and self.task in self.task_embeddings:
            queries = queries + self.task_embeddings[self.task].to(visible.dtype)
        return queries.expand(visible.shape[0], -1, -1)
