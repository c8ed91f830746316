"""The network of MultiMAE and MultiViT: embed, encode, decode (Bachmann et al., ECCV 2022).

Shapes: b batch, n visible tokens, N tokens of all modalities, g global tokens, d encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multimae.nn.layers import (
    Block,
    LayerNorm,
    NormLayer,
    drop_path_rates,
    init_transformer_weights,
    trunc_normal_,
)
from multimae.nn.masking import TokenMasks, gather_tokens
from multimae.nn.tokens import Size, TokenLayout, unpatchify
from multimae.output_adapters.spatial import SpatialOutputAdapter

DEFAULT_INPUT = "rgb"  # modality of a bare tensor


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


class MultiModalTransformer(nn.Module):
    """Input adapters, global tokens, transformer blocks and output adapters."""

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
            input_adapters: Modality -> adapter, in sequence order.
            output_adapters: Output name -> decoder or head; ``None`` for the encoder alone.
            num_global_tokens: Number of learned global tokens, last in the sequence.
            dim_tokens: Width d.
            depth: Number of transformer blocks.
            num_heads: Attention heads.
            mlp_ratio: Hidden width of the MLPs over d.
            qkv_bias: Use biases in the attention projections.
            drop_rate: Dropout of projections and MLPs.
            attn_drop_rate: Dropout of attention weights.
            drop_path_rate: Stochastic depth rate of the last block; grows linearly from 0.
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

    def forward_patches(
        self,
        x: Mapping[str, Tensor],
        draw_masks: Callable[[TokenLayout], TokenMasks],
        fp32_output_adapters: Sequence[str] = (),
    ) -> PatchPredictions:
        """Encode the visible tokens and decode every output as patch vectors.

        Args:
            x: Modality -> batch.
            draw_masks: Returns the masks for a token layout.
            fp32_output_adapters: Outputs to compute in float32, outside autocast.
        """
        layout = self.layout_of(x)
        masks = draw_masks(layout)
        encoded = self.encode_tokens(self.embed_visible(x, layout, masks))
        return PatchPredictions(
            self.decode(encoded, layout, masks, fp32_output_adapters), masks, layout
        )

    def embed(self, x: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, TokenLayout]:
        """All tokens of all modalities (b, N, d), and their layout."""
        inputs, layout = self._inputs(x), self.layout_of(x)
        tokens = [self.input_adapters[name](image) for name, image in inputs.items()]
        return torch.cat(tokens, dim=1), layout

    def embed_visible(
        self, x: Tensor | Mapping[str, Tensor], layout: TokenLayout, masks: TokenMasks
    ) -> Tensor:
        """Embed the visible tokens only: (b, n, d), in ``ids_keep`` order.

        The number of visible patches of a modality varies between samples. For static shapes, n
        patches of every modality are projected (or all, if it has fewer), visible ones first.
        """
        num_visible = masks.ids_keep.shape[1]
        tokens, indices, start = [], [], 0
        for name, image in self._inputs(x).items():
            size = layout.slices[name].num_tokens
            count = min(size, num_visible)
            order = masks.task_masks[name].argsort(dim=1, stable=True)
            tokens.append(self.input_adapters[name].forward_patches(image, order[:, :count]))  # type: ignore[operator]
            indices.append(start + order.argsort(dim=1))
            start += count
        visible = torch.cat(indices, dim=1).gather(1, masks.ids_keep)
        return gather_tokens(torch.cat(tokens, dim=1), visible)

    def set_grad_checkpointing(self, *, enable: bool | Literal["selective"] = True) -> None:
        """Recompute activations of blocks in the backward pass; ``"selective"``: cheap ones."""
        options: dict[str, Any] | None = {} if enable else None
        if enable == "selective":
            from multimae.nn.recompute import selective_contexts

            options = {"context_fn": selective_contexts}
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = options

    def layout_of(self, x: Tensor | Mapping[str, Tensor]) -> TokenLayout:
        """Token layout of the inputs ``x``."""
        return self.layout({n: (x.shape[-2], x.shape[-1]) for n, x in self._inputs(x).items()})

    def layout(self, sizes: Mapping[str, Size]) -> TokenLayout:
        """Token layout of inputs of these (height, width), each in its modality's resolution.

        Raises:
            ValueError: A size is not divisible by its patch, or full-resolution sizes disagree.
        """
        grids, full = {}, {}
        for name, (height, width) in sizes.items():
            adapter: Any = self.input_adapters[name]
            grids[name] = adapter.grid(height, width, name)
            full[name] = (height * adapter.stride_level, width * adapter.stride_level)
        first = next(iter(full.values()))
        if any(size != first for size in full.values()):
            raise ValueError(
                "modalities disagree about the full-resolution size (their size x stride): "
                + ", ".join(f"{name} {h}x{w}" for name, (h, w) in full.items())
            )
        return TokenLayout.from_grids(first, grids, self.num_global_tokens)

    def encode_layers(self, tokens_bnd: Tensor) -> list[Tensor]:
        """As :meth:`encode_tokens`, but return the tokens after every block."""
        x = self.with_global_tokens(tokens_bnd)
        layers = []
        for block in self.encoder:
            x = block(x)
            layers.append(x)
        return layers

    def encode_tokens(self, tokens_bnd: Tensor) -> Tensor:
        """Append the global tokens and run the blocks: (b, n, d) -> (b, n+g, d)."""
        return self.encoder(self.with_global_tokens(tokens_bnd))  # type: ignore[no-any-return]

    def apply_heads(
        self, x: Tensor | Mapping[str, Tensor], all_layers: bool = False
    ) -> dict[str, Tensor]:
        """Output of every head, without masking.

        Args:
            x: Modality -> batch, or a single RGB tensor.
            all_layers: Pass the tokens of all blocks to the heads.
        """
        tokens, layout = self.embed(x)
        layers = self.encode_layers(tokens)
        encoded = layers if all_layers else layers[-1]
        return {name: head(encoded, layout) for name, head in self.output_adapters.items()}

    def _inputs(self, x: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        images = {DEFAULT_INPUT: x} if isinstance(x, Tensor) else x
        inputs = {name: images[name] for name in self.input_adapters if name in images}
        if not inputs:
            raise ValueError(
                f"no input for this model: it takes {', '.join(self.input_adapters)}, "
                f"got {', '.join(images) or 'nothing'}"
            )
        return inputs

    def with_global_tokens(self, tokens_bnd: Tensor) -> Tensor:
        """Append the global tokens: (b, n, d) -> (b, n+g, d)."""
        global_tokens = self.global_tokens.to(tokens_bnd.dtype).expand(tokens_bnd.shape[0], -1, -1)
        return torch.cat([tokens_bnd, global_tokens], dim=1)

    def decode(
        self,
        encoded: Tensor,
        layout: TokenLayout,
        masks: TokenMasks,
        fp32_output_adapters: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """Decode every output: patch vectors from spatial decoders, outputs of heads unchanged."""
        out = {}
        for name, adapter in self.output_adapters.items():
            fp32 = name in fp32_output_adapters
            tokens = encoded.float() if fp32 else encoded
            with torch.autocast(encoded.device.type, enabled=False) if fp32 else nullcontext():
                if isinstance(adapter, SpatialOutputAdapter):
                    out[name] = adapter.forward_patches(
                        tokens, layout, masks.ids_keep, masks.ids_restore
                    )
                else:
                    out[name] = adapter(tokens, layout)
        return out

    def fold(self, decoded: Mapping[str, Tensor], layout: TokenLayout) -> dict[str, Tensor]:
        """Fold patch vectors of spatial decoders into images (b, C, H/s, W/s)."""
        out = dict(decoded)
        for name, adapter in self.output_adapters.items():
            if isinstance(adapter, SpatialOutputAdapter):
                out[name] = unpatchify(decoded[name], adapter.grid(layout), adapter.patch_size)
        return out


def autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Autocast type by flag; ``None`` is float32.

    Args:
        name: ``bf16``, ``fp16``, ``fp32`` or ``auto``: bf16 where the hardware computes in it,
            else fp16 on GPUs and float32 on CPUs (where emulated bf16 is a hundred times slower).
        device: Where the model computes. On GPUs ``fp32`` also keeps convolutions from rounding to
            TF32, which torch lets them do.
    """
    if name == "auto":
        name = "fp32"
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        elif device.type == "cpu" and _cpu_computes_bf16():
            name = "bf16"
    if name == "fp32" and device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[name]


def autocast(device_type: str, dtype: torch.dtype | None) -> torch.autocast:
    """Context for a forward pass in ``dtype``; ``None`` is float32."""
    return torch.autocast(device_type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def _cpu_computes_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices itself (AVX-512 BF16 or AMX)."""
    # Without this function (before torch 2.10) nothing tells, and float32 is never wrong.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
