"""Classification head: pooled tokens, LayerNorm, linear layer (SPEC section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multimae.nn.layers import LayerNorm, NormLayer
from multimae.nn.tokens import TokenLayout
from multimae.output_adapters.features import EncoderTokens, last_layer


class LinearOutputAdapter(nn.Module):
    """One vector of class scores per image."""

    def __init__(
        self,
        num_classes: int,
        dim_tokens_enc: int | None = None,
        use_mean_pooling: bool = True,
        norm_layer: NormLayer = LayerNorm,
        init_scale: float = 1.0,
    ) -> None:
        """Declare the head; its layers are built by :meth:`init`.

        Args:
            num_classes: K.
            dim_tokens_enc: Encoder width; usually set later by the model.
            use_mean_pooling: Mean over all tokens (global ones included), else the last token.
            norm_layer: Normalisation constructor.
            init_scale: Factor on the initial weights of the linear layer.
        """
        super().__init__()
        self.num_classes = num_classes
        self.use_mean_pooling = use_mean_pooling
        self.norm_layer = norm_layer
        self.init_scale = init_scale
        if dim_tokens_enc is not None:
            self.init(dim_tokens_enc)

    def init(self, dim_tokens_enc: int = 768) -> None:
        """Build the layers for tokens of width ``dim_tokens_enc``."""
        self.norm = self.norm_layer(dim_tokens_enc)
        self.head = nn.Linear(dim_tokens_enc, self.num_classes)

    @torch.no_grad()
    def after_init(self) -> None:
        """Scale the head; the model calls this once it has initialised every layer."""
        self.head.weight.mul_(self.init_scale)

    def forward(self, encoder_tokens: EncoderTokens, input_info: TokenLayout) -> Tensor:
        """Tokens (b, N+g, D), or those of all layers, -> scores (b, K)."""
        x = last_layer(encoder_tokens)
        x = x.mean(dim=1) if self.use_mean_pooling else x[:, -1]
        return self.head(self.norm(x))  # type: ignore[no-any-return]
