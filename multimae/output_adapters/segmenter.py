"""Segmenter's mask transformer (Strudel et al. 2021; SPEC section 3).

Shapes: b batch, n patch tokens, k classes, d decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae.nn.layers import Block, LayerNorm, NormLayer, drop_path_rates, trunc_normal_
from multimae.nn.tokens import TokenLayout
from multimae.output_adapters.features import (
    EncoderTokens,
    last_layer,
    main_task_grid,
    main_task_tokens,
    tokens_to_map,
)


class SegmenterMaskTransformerAdapter(nn.Module):
    """Mask transformer over patch and class tokens; masks are their cosine similarities."""

    def __init__(
        self,
        num_classes: int,
        depth: int = 2,
        num_heads: int = 12,
        embed_dim: int = 768,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.1,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        qkv_bias: bool = True,
        main_tasks: Sequence[str] = ("rgb",),
        patch_size: int = 16,
        norm_layer: NormLayer = LayerNorm,
    ) -> None:
        """Build the decoder; the encoder-dependent projection is built by :meth:`init`.

        Args:
            num_classes: Classes k.
            depth: Transformer blocks.
            num_heads: Attention heads.
            embed_dim: Decoder width d.
            mlp_ratio: Hidden width of the MLPs over d.
            drop_path_rate: Stochastic depth, growing linearly.
            drop_rate: Dropout of projections and MLPs.
            attn_drop_rate: Dropout of attention weights.
            qkv_bias: Biases in the attention projections.
            main_tasks: Modalities whose tokens are decoded.
            patch_size: Patch side of the encoder; unused, the token layout has the grid.
            norm_layer: Normalisation constructor.
        """
        super().__init__()
        self.num_classes = num_classes
        self.embed_dim = embed_dim
        self.main_tasks = tuple(main_tasks)
        self.patch_size = patch_size
        self.cls_emb = nn.Parameter(trunc_normal_(torch.zeros(1, num_classes, embed_dim)))
        self.patch_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.classes_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.blocks = nn.Sequential(
            *(
                Block(
                    embed_dim, num_heads, mlp_ratio, qkv_bias, drop_rate, attn_drop_rate, rate,
                    norm_layer,
                )
                for rate in drop_path_rates(drop_path_rate, depth)
            )
        )  # fmt: skip
        self.decoder_norm = norm_layer(embed_dim)
        self.mask_norm = norm_layer(num_classes)

    def init(self, dim_tokens_enc: int = 768) -> None:
        """Build the projection from the encoder's width."""
        self.proj_dec = nn.Linear(dim_tokens_enc * len(self.main_tasks), self.embed_dim)

    def forward(self, encoder_tokens: EncoderTokens, input_info: TokenLayout) -> Tensor:
        """Tokens (b, N+g, D), or those of all layers, -> class scores (b, k, H, W).

        Raises:
            ValueError: A main task is not in the input, or tokens are masked.
        """
        tokens = last_layer(encoder_tokens)
        x = self.proj_dec(main_task_tokens(tokens, input_info, self.main_tasks))
        classes = self.cls_emb.to(x.dtype).expand(x.shape[0], -1, -1)
        x = self.decoder_norm(self.blocks(torch.cat([x, classes], dim=1)))
        patches, classes = x[:, : -self.num_classes], x[:, -self.num_classes :]
        patches = F.normalize(self.patch_proj(patches), dim=-1)
        classes = F.normalize(self.classes_proj(classes), dim=-1)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))  # (b, n, k)
        masks = tokens_to_map(masks, main_task_grid(input_info, self.main_tasks))
        return F.interpolate(masks, size=input_info.image_size, mode="bilinear")
