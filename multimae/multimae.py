"""MultiMAE and MultiViT (Bachmann et al., ECCV 2022; SPEC section 2).

Shapes: b batch, n visible tokens, N tokens of all modalities, g global tokens, d encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multimae.layers import (
    Block,
    LayerNorm,
    NormLayer,
    drop_path_rates,
    init_transformer_weights,
    trunc_normal_,
)
from multimae.masking import (
    TokenMasks,
    gather_tokens,
    masks_from_task_masks,
    no_masks,
    sample_masks,
)
from multimae.output_adapters.spatial import SpatialOutputAdapter
from multimae.patches import unpatchify
from multimae.tokens import Size, TokenLayout

DEFAULT_INPUT = "rgb"  # what a bare tensor is taken for


@dataclass(frozen=True)
class PatchPredictions:
    """Decoder outputs as patch vectors, before folding into images.

    Attributes:
        patches: Output name -> (b, t, C*P*P), entries (channel, row, column).
        masks: The masks used.
        layout: Layout of the full sequence.
    """

    patches: dict[str, Tensor]
    masks: TokenMasks
    layout: TokenLayout


class MultiMAE(nn.Module):
    """Masked autoencoder over several aligned modalities."""

    def __init__(
        self,
        input_adapters: Mapping[str, nn.Module],
        output_adapters: Mapping[str, nn.Module] | None,
        num_global_tokens: int = 1,
        dim_tokens: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: NormLayer = LayerNorm,
    ) -> None:
        """Build the encoder and let every adapter build its width-dependent parts.

        Args:
            input_adapters: Modality -> adapter; their order is the order of the sequence.
            output_adapters: Output name -> decoder or head; ``None`` for the encoder alone.
            num_global_tokens: Learned tokens behind the modalities' tokens.
            dim_tokens: Width d.
            depth: Transformer blocks.
            num_heads: Attention heads.
            mlp_ratio: Hidden width of the MLPs over d.
            qkv_bias: Biases in the attention projections.
            drop_rate: Dropout of projections and MLPs.
            attn_drop_rate: Dropout of attention weights.
            drop_path_rate: Stochastic depth, growing linearly to this over the blocks.
            norm_layer: Normalisation constructor.
        """
        super().__init__()
        self.dim_tokens = dim_tokens
        self.num_global_tokens = num_global_tokens
        for adapter in input_adapters.values():
            adapter.init(dim_tokens=dim_tokens)  # type: ignore[operator]
        self.input_adapters = nn.ModuleDict(input_adapters)
        for adapter in (output_adapters or {}).values():
            adapter.init(dim_tokens_enc=dim_tokens)  # type: ignore[operator]
        self.output_adapters = nn.ModuleDict(output_adapters or {})
        self.global_tokens = nn.Parameter(
            trunc_normal_(torch.zeros(1, num_global_tokens, dim_tokens))
        )
        self.encoder = nn.Sequential(
            *(
                Block(
                    dim_tokens, num_heads, mlp_ratio, qkv_bias, drop_rate, attn_drop_rate, rate,
                    norm_layer,
                )
                for rate in drop_path_rates(drop_path_rate, depth)
            )
        )  # fmt: skip
        init_transformer_weights(self)
        for adapter in self.output_adapters.values():
            after_init = getattr(adapter, "after_init", None)
            if after_init is not None:
                after_init()

    def forward(
        self,
        x: Tensor | Mapping[str, Tensor],
        mask_inputs: bool = True,
        task_masks: Mapping[str, Tensor] | None = None,
        num_encoded_tokens: int = 128,
        alphas: float | Sequence[float] = 1.0,
        sample_tasks_uniformly: bool = False,
        fp32_output_adapters: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> tuple[dict[str, Tensor] | Tensor, dict[str, Tensor]]:
        """Encode a random subset of tokens and predict every output.

        Args:
            x: Modality -> batch ((B, C, H, W) floats or (B, H, W) class ids), or one tensor, taken
                as rgb. Keys without an input adapter are ignored.
            mask_inputs: Sample masks; ``False`` encodes everything (masks are all zero).
            task_masks: Modality -> (B, N_m), 1 = masked: given instead of sampled.
            num_encoded_tokens: Visible tokens per sample.
            alphas: Dirichlet concentration, one for all or one per input.
            sample_tasks_uniformly: First draw a subset of the inputs uniformly.
            fp32_output_adapters: Outputs computed in float32 outside autocast.
            generator: Source of the masks' randomness, on the tokens' device.

        Returns:
            Predictions by output name (images (B, C, H/s, W/s) or head outputs), or the encoder
            tokens (B, n+g, d) if there are no output adapters; and the masks by modality.

        Raises:
            ValueError: Sizes that disagree or do not divide, unknown budget, unequal masks.
        """
        tokens, layout = self.embed(x)
        if not mask_inputs:
            masks = no_masks(layout, len(tokens), tokens.device)
        elif task_masks is not None:
            masks = masks_from_task_masks(task_masks, layout)
        else:
            masks = sample_masks(
                layout, len(tokens), num_encoded_tokens, alphas, sample_tasks_uniformly,
                generator, tokens.device,
            )  # fmt: skip
        encoded = self.encode_tokens(gather_tokens(tokens, masks.ids_keep))
        if not self.output_adapters:
            return encoded, masks.task_masks
        preds = {}
        for name, out in self._decode(encoded, layout, masks, fp32_output_adapters).items():
            adapter = self.output_adapters[name]
            if isinstance(adapter, SpatialOutputAdapter):
                out = unpatchify(out, adapter.grid(layout), adapter.patch_size)
            preds[name] = out
        return preds, masks.task_masks

    def forward_patches(
        self,
        x: Mapping[str, Tensor],
        draw_masks: Callable[[TokenLayout], TokenMasks],
        fp32_output_adapters: Sequence[str] = (),
    ) -> PatchPredictions:
        """As :meth:`forward`, for training: predictions stay patch vectors.

        Args:
            x: Modality -> batch.
            draw_masks: Gives the masks for a sequence layout.
            fp32_output_adapters: Outputs computed in float32 outside autocast.
        """
        tokens, layout = self.embed(x)
        masks = draw_masks(layout)
        encoded = self.encode_tokens(gather_tokens(tokens, masks.ids_keep))
        preds = self._decode(encoded, layout, masks, fp32_output_adapters)
        return PatchPredictions(preds, masks, layout)

    def embed(self, x: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, TokenLayout]:
        """All tokens of all modalities (b, N, d), and their layout."""
        inputs = self._inputs(x)
        layout = self.layout({name: _hw(image) for name, image in inputs.items()})
        tokens = [self.input_adapters[name](image) for name, image in inputs.items()]
        return torch.cat(tokens, dim=1), layout

    def layout(self, sizes: Mapping[str, Size]) -> TokenLayout:
        """Sequence layout for inputs of these (height, width), each in its own resolution.

        Raises:
            ValueError: A size is not divisible by its patch, or full-resolution sizes disagree.
        """
        grids, full = {}, {}
        for name, (height, width) in sizes.items():
            adapter: Any = self.input_adapters[name]
            grids[name] = adapter.grid(height, width, name)
            full[name] = (height * adapter.stride_level, width * adapter.stride_level)
        if len(set(full.values())) > 1:
            raise ValueError(
                "modalities disagree about the full-resolution size (their size x stride): "
                + ", ".join(f"{name} {h}x{w}" for name, (h, w) in full.items())
            )
        return TokenLayout.from_grids(next(iter(full.values())), grids, self.num_global_tokens)

    def encode_tokens(self, tokens_bnd: Tensor) -> Tensor:
        """Append the global tokens and run the blocks: (b, n, d) -> (b, n+g, d)."""
        return self.encoder(self._with_global_tokens(tokens_bnd))  # type: ignore[no-any-return]

    def _inputs(self, x: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {DEFAULT_INPUT: x} if isinstance(x, Tensor) else x
        inputs = {name: given[name] for name in self.input_adapters if name in given}
        if not inputs:
            raise ValueError(
                f"no input for this model: it takes {', '.join(self.input_adapters)}, "
                f"got {', '.join(given) or 'nothing'}"
            )
        return inputs

    def _with_global_tokens(self, tokens_bnd: Tensor) -> Tensor:
        global_tokens = self.global_tokens.to(tokens_bnd.dtype).expand(len(tokens_bnd), -1, -1)
        return torch.cat([tokens_bnd, global_tokens], dim=1)

    def _decode(
        self,
        encoded: Tensor,
        layout: TokenLayout,
        masks: TokenMasks,
        fp32_output_adapters: Sequence[str],
    ) -> dict[str, Tensor]:
        """Every output: patch vectors of spatial decoders, whatever heads return."""
        out = {}
        for name, adapter in self.output_adapters.items():
            fp32 = name in fp32_output_adapters
            tokens = encoded.float() if fp32 else encoded
            device = encoded.device.type
            enabled = torch.is_autocast_enabled(device) and not fp32
            with torch.autocast(device, dtype=torch.get_autocast_dtype(device), enabled=enabled):
                if isinstance(adapter, SpatialOutputAdapter):
                    out[name] = adapter.forward_patches(
                        tokens, layout, masks.ids_keep, masks.ids_restore
                    )
                else:
                    out[name] = adapter(tokens, layout)
        return out


class MultiViT(MultiMAE):
    """The same network as an ordinary ViT: no masking; for fine-tuning and features."""

    def forward(  # type: ignore[override]
        self, x: Tensor | Mapping[str, Tensor], return_all_layers: bool = False
    ) -> dict[str, Tensor] | Tensor | list[Tensor]:
        """Encode everything.

        Args:
            x: Modality -> batch, or one tensor, taken as rgb.
            return_all_layers: Give heads (or the caller) the tokens after every block.

        Returns:
            With output adapters a dict of their outputs. Without: tokens (B, N+g, d), global
            tokens last, or the list of them after every block.
        """
        tokens, layout = self.embed(x)
        tokens = self._with_global_tokens(tokens)
        layers = []
        for block in self.encoder:
            tokens = block(tokens)
            layers.append(tokens)
        encoded: Tensor | list[Tensor] = layers if return_all_layers else tokens
        if not self.output_adapters:
            return encoded
        return {name: head(encoded, layout) for name, head in self.output_adapters.items()}


def _hw(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]
