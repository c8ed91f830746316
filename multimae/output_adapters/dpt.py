"""Dense prediction transformer head (Ranftl et al. 2021; SPEC section 3).

Four encoder layers become feature maps at 4x, 2x, 1x and 1/2x the token grid; a pyramid of
fusion blocks merges them, coarse to fine, to 16x the grid.

Shapes: b batch, d encoder width times main tasks, f = ``feature_dim``, h x w any map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from multimae.nn.tokens import Size, TokenLayout
from multimae.output_adapters.features import (
    EncoderTokens,
    main_task_grid,
    main_task_tokens,
    tokens_to_map,
)

HeadType = Literal["regression", "semseg"]


def dpt_defaults(depth: int, dim: int) -> tuple[list[int], list[int]]:
    """Hooks and layer widths for an encoder: last block of each quarter; d/8, d/4, d/2, d.

    A 12 x 768 encoder gives the published ``[2, 5, 8, 11]`` and ``[96, 192, 384, 768]``.
    """
    hooks = [max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4)]
    return hooks, [dim // 8, dim // 4, dim // 2, dim]


class ResidualConvUnit(nn.Module):
    """``x + conv2(relu(conv1(relu(x))))``, each convolution 3x3, batch-normed on request."""

    def __init__(self, dim: int, use_bn: bool = False) -> None:
        """``dim`` channels; with ``use_bn`` the convolutions have no bias."""
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=not use_bn)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=not use_bn)
        self.bn1 = nn.BatchNorm2d(dim) if use_bn else nn.Identity()
        self.bn2 = nn.BatchNorm2d(dim) if use_bn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(b, f, h, w) -> (b, f, h, w)."""
        out = self.bn1(self.conv1(F.relu(x)))
        return x + self.bn2(self.conv2(F.relu(out)))  # type: ignore[no-any-return]


class FeatureFusionBlock(nn.Module):
    """Adds a skip to the coarser path, refines, and upsamples."""

    def __init__(self, dim: int, use_bn: bool = False, has_path: bool = True) -> None:
        """``dim`` channels; ``has_path=False`` for the coarsest block, which only has its skip."""
        super().__init__()
        self.resConfUnit1 = ResidualConvUnit(dim, use_bn)
        self.resConfUnit2 = ResidualConvUnit(dim, use_bn)
        self.out_conv = nn.Conv2d(dim, dim, kernel_size=1)
        if not has_path:
            # Unused, but part of the published state dict; frozen for DDP.
            self.resConfUnit1.requires_grad_(False)

    def forward(self, skip: Tensor, path: Tensor | None = None, size: Size | None = None) -> Tensor:
        """(b, f, h, w) maps -> (b, f, *size); default size: twice the skip's."""
        x = skip if path is None else path + self.resConfUnit1(skip)
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        x = F.interpolate(self.resConfUnit2(x), size=size, mode="bilinear", align_corners=True)
        return self.out_conv(x)  # type: ignore[no-any-return]


class _Scratch(nn.Module):
    """Convolutional pyramid, named as in DPT."""

    def __init__(self, layer_dims: Sequence[int], dim: int, use_bn: bool) -> None:
        super().__init__()
        convs = [nn.Conv2d(d, dim, kernel_size=3, padding=1, bias=False) for d in layer_dims]
        for i, conv in enumerate(convs, start=1):
            self.add_module(f"layer{i}_rn", conv)
        self.layer_rn = nn.ModuleList(convs)
        self.refinenet1 = FeatureFusionBlock(dim, use_bn)
        self.refinenet2 = FeatureFusionBlock(dim, use_bn)
        self.refinenet3 = FeatureFusionBlock(dim, use_bn)
        self.refinenet4 = FeatureFusionBlock(dim, use_bn, has_path=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps at 4x, 2x, 1x, 1/2x the grid -> (b, f, 8h, 8w)."""
        skip1, skip2, skip3, skip4 = (conv(x) for conv, x in zip(self.layer_rn, maps, strict=True))
        # Twice a rounded-up odd size is too large: resize each path to the size of its skip.
        path = self.refinenet4(skip4, size=_hw(skip3))
        path = self.refinenet3(skip3, path, size=_hw(skip2))
        path = self.refinenet2(skip2, path, size=_hw(skip1))
        return self.refinenet1(skip1, path)  # type: ignore[no-any-return]


class DPTOutputAdapter(nn.Module):
    """Dense prediction from four encoder layers; needs ``return_all_layers=True``."""

    def __init__(
        self,
        num_classes: int = 3,
        stride_level: int = 1,
        patch_size: int = 16,
        main_tasks: Sequence[str] = ("rgb",),
        hooks: Sequence[int] = (2, 5, 8, 11),
        layer_dims: Sequence[int] = (96, 192, 384, 768),
        feature_dim: int = 256,
        use_bn: bool = False,
        dim_tokens_enc: int | None = None,
        head_type: HeadType = "regression",
    ) -> None:
        """Build the pyramid; the encoder-dependent part is built by :meth:`init`.

        Args:
            num_classes: Output channels.
            stride_level: The output is at ``1/stride_level`` of full resolution.
            patch_size: Patch side of the encoder; unused, the token layout has the grid.
            main_tasks: Modalities whose tokens are decoded.
            hooks: The four encoder blocks to read, shallow to deep (see :func:`dpt_defaults`).
            layer_dims: Widths of their maps.
            feature_dim: Width f of the pyramid.
            use_bn: Batch norm in the pyramid and the semseg head.
            dim_tokens_enc: Encoder width; usually set later by the model.
            head_type: ``regression`` or ``semseg``.

        Raises:
            ValueError: Not four hooks and widths, or an unknown head type.
        """
        super().__init__()
        if len(hooks) != 4 or len(layer_dims) != 4:
            raise ValueError(f"DPT needs 4 hooks and 4 layer_dims, got {hooks} and {layer_dims}")
        self.stride_level = stride_level
        self.patch_size = patch_size
        self.main_tasks = tuple(main_tasks)
        self.hooks = tuple(hooks)
        self.layer_dims = tuple(layer_dims)
        self.scratch = _Scratch(layer_dims, feature_dim, use_bn)
        self.head = _head(head_type, feature_dim, num_classes, use_bn)
        if dim_tokens_enc is not None:
            self.init(dim_tokens_enc)

    def init(self, dim_tokens_enc: int = 768) -> None:
        """Build the projections from the encoder's width to maps of four sizes."""
        dim = dim_tokens_enc * len(self.main_tasks)
        d1, d2, d3, d4 = self.layer_dims
        resize: tuple[list[nn.Module], ...] = (
            [nn.ConvTranspose2d(d1, d1, kernel_size=4, stride=4)],
            [nn.ConvTranspose2d(d2, d2, kernel_size=2, stride=2)],
            [],
            [nn.Conv2d(d4, d4, kernel_size=3, stride=2, padding=1)],
        )
        stages = [
            nn.Sequential(nn.Conv2d(dim, d, kernel_size=1), *layers)
            for d, layers in zip((d1, d2, d3, d4), resize, strict=True)
        ]
        for i, stage in enumerate(stages, start=1):
            self.add_module(f"act_{i}_postprocess", stage)
        self.act_postprocess = nn.ModuleList(stages)

    def forward(self, encoder_tokens: EncoderTokens, input_info: TokenLayout) -> Tensor:
        """Tokens (b, N+g, D) after every block -> (b, num_classes, H/stride, W/stride).

        Raises:
            ValueError: Missing layers, a main task is not in the input, or tokens are masked.
        """
        if isinstance(encoder_tokens, Tensor) or max(self.hooks) >= len(encoder_tokens):
            num_layers = 1 if isinstance(encoder_tokens, Tensor) else len(encoder_tokens)
            raise ValueError(
                f"the DPT head reads encoder layers {list(self.hooks)} but got {num_layers}: "
                "call the model with return_all_layers=True and take hooks and layer_dims from "
                "dpt_defaults(depth, dim)"
            )
        grid = main_task_grid(input_info, self.main_tasks)
        maps = []
        for hook, stage in zip(self.hooks, self.act_postprocess, strict=True):
            tokens = main_task_tokens(encoder_tokens[hook], input_info, self.main_tasks)
            maps.append(stage(tokens_to_map(tokens, grid)))
        out: Tensor = self.head(self.scratch(maps))
        height, width = input_info.image_size
        size = (height // self.stride_level, width // self.stride_level)
        if _hw(out) != size:  # patches other than 16, or an output stride
            out = F.interpolate(out, size=size, mode="bilinear")
        return out


def _head(kind: HeadType, dim: int, num_classes: int, use_bn: bool) -> nn.Sequential:
    """(b, f, h, w) -> (b, num_classes, 2h, 2w)."""
    double = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    if kind == "regression":
        return nn.Sequential(
            nn.Conv2d(dim, dim // 2, kernel_size=3, padding=1),
            double,
            nn.Conv2d(dim // 2, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, num_classes, kernel_size=1),
        )
    if kind == "semseg":
        return nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(dim) if use_bn else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(dim, num_classes, kernel_size=1),
            double,
        )
    raise ValueError(f"unknown head_type '{kind}': use 'regression' or 'semseg'")


def _hw(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]
