"""Input adapters: image of a modality -> tokens (SPEC section 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae.nn.layers import trunc_normal_, xavier_uniform_
from multimae.nn.masking import gather_tokens
from multimae.nn.tokens import Size, as_size, patchify, pos_emb_tokens, sincos_2d


class _PatchAdapter(nn.Module):
    """Base of both adapters: patch grid and position table."""

    pos_emb_mode = "bicubic"
    proj: nn.Module
    pos_emb: nn.Parameter

    def __init__(
        self,
        stride_level: int,
        patch_size_full: int | Size,
        sincos_pos_emb: bool,
        learnable_pos_emb: bool,
        image_size: int | Size,
    ) -> None:
        super().__init__()
        self.stride_level = stride_level
        self.sincos_pos_emb = sincos_pos_emb
        self.learnable_pos_emb = learnable_pos_emb
        self.image_size = as_size(image_size)
        ph, pw = as_size(patch_size_full)
        self.patch_size: Size = (max(1, ph // stride_level), max(1, pw // stride_level))
        self.dim_tokens: int | None = None

    def grid(self, height: int, width: int, name: str = "input") -> Size:
        """Token grid of an input of (height, width) pixels in this modality's own resolution.

        Raises:
            ValueError: The size is not a multiple of the patch.
        """
        ph, pw = self.patch_size
        if height % ph or width % pw or not height or not width:
            raise ValueError(
                f"{name}: size {height}x{width} is not divisible by the patch size {ph}x{pw}; "
                f"nearest sizes: {max(1, round(height / ph)) * ph}x{max(1, round(width / pw)) * pw}"
            )
        return height // ph, width // pw

    def _init_pos_emb(self, dim_tokens: int) -> None:
        h = max(1, self.image_size[0] // (self.stride_level * self.patch_size[0]))
        w = max(1, self.image_size[1] // (self.stride_level * self.patch_size[1]))
        table = sincos_2d(h, w, dim_tokens) if self.sincos_pos_emb else None
        if table is None:
            table = trunc_normal_(torch.zeros(1, dim_tokens, h, w))
        self.pos_emb = nn.Parameter(table, requires_grad=self.learnable_pos_emb)

    def _to_tokens(self, x_bchw: Tensor) -> Tensor:
        x_bdhw = self.proj(x_bchw)
        rows, cols = x_bdhw.shape[-2:]
        positions = pos_emb_tokens(self.pos_emb, (rows, cols), self.pos_emb_mode)
        return x_bdhw.flatten(2).transpose(1, 2) + positions  # type: ignore[no-any-return]

    def forward_patches(self, x: Tensor, patch_ids_bk: Tensor) -> Tensor:
        """Embed selected patches of every sample: (b, k) -> (b, k, D).

        Equals the tokens of ``forward`` up to rounding, but projects only these patches.

        Args:
            x: As for ``forward``.
            patch_ids_bk: Patch indices, row-major.
        """
        grid = self.grid(x.shape[-2], x.shape[-1])
        patches = gather_tokens(patchify(x, self.patch_size), patch_ids_bk)
        positions = pos_emb_tokens(self.pos_emb, grid, self.pos_emb_mode)
        return self._project(patches) + F.embedding(patch_ids_bk, positions[0])

    def _project(self, patches_bkp: Tensor) -> Tensor:
        """Patch vectors (channel, row, column), or labels (row, column) -> (b, k, D)."""
        conv: nn.Conv2d = self.proj  # type: ignore[assignment]
        return F.linear(patches_bkp, conv.weight.flatten(1), conv.bias)


class PatchedInputAdapter(_PatchAdapter):
    """Image-like input (B, C, H, W) -> tokens (B, N, D): one strided convolution."""

    def __init__(
        self,
        num_channels: int,
        stride_level: int,
        patch_size_full: int | Size,
        dim_tokens: int | None = None,
        sincos_pos_emb: bool = True,
        learnable_pos_emb: bool = False,
        image_size: int | Size = 224,
    ) -> None:
        """Store the options; the width-dependent parts are built by :meth:`init`.

        Args:
            num_channels: C.
            stride_level: The modality is at ``1/stride_level`` of full resolution.
            patch_size_full: Patch side at full resolution, in pixels.
            dim_tokens: Token width D; usually set later by the model.
            sincos_pos_emb: Initialise with the sin-cos table, else truncated normal (std 0.02).
            learnable_pos_emb: Train the position table.
            image_size: Full-resolution size of the position table.
        """
        super().__init__(
            stride_level, patch_size_full, sincos_pos_emb, learnable_pos_emb, image_size
        )
        self.num_channels = num_channels
        if dim_tokens is not None:
            self.init(dim_tokens)

    def init(self, dim_tokens: int = 768) -> None:
        """Build projection and position table for tokens of width ``dim_tokens``."""
        self.dim_tokens = dim_tokens
        proj = nn.Conv2d(self.num_channels, dim_tokens, self.patch_size, self.patch_size)
        xavier_uniform_(proj.weight)
        nn.init.zeros_(proj.bias)  # type: ignore[arg-type]
        self.proj = proj
        self._init_pos_emb(dim_tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, N, D).

        Raises:
            ValueError: Wrong channel count, or a size not divisible by the patch.
        """
        if x.ndim != 4 or x.shape[1] != self.num_channels:
            raise ValueError(
                f"expected an image batch (B, {self.num_channels}, H, W), got {tuple(x.shape)}"
            )
        self.grid(x.shape[2], x.shape[3])
        return self._to_tokens(x)


class SemSegInputAdapter(_PatchAdapter):
    """Integer labels (B, H, W) -> tokens (B, N, D): class embedding, then projection."""

    pos_emb_mode = "bilinear"

    def __init__(
        self,
        num_classes: int,
        stride_level: int,
        patch_size_full: int | Size,
        dim_tokens: int | None = None,
        sincos_pos_emb: bool = True,
        learnable_pos_emb: bool = False,
        image_size: int | Size = 224,
        dim_class_emb: int = 64,
        interpolate_class_emb: bool = False,
        emb_padding_idx: int | None = None,
    ) -> None:
        """Store the options; the width-dependent parts are built by :meth:`init`.

        Args:
            num_classes: K, without the padding class.
            stride_level: Labels are at ``1/stride_level`` of full resolution (published: 4).
            patch_size_full: Patch side at full resolution, in pixels.
            dim_tokens: Token width D; usually set later by the model.
            sincos_pos_emb: Initialise with the sin-cos table, else truncated normal (std 0.02).
            learnable_pos_emb: Train the position table.
            image_size: Full-resolution size of the position table.
            dim_class_emb: Width of the class embedding.
            interpolate_class_emb: Downsample embeddings to the token grid and apply a 1x1
                convolution, instead of a strided convolution.
            emb_padding_idx: Add a class for padding pixels, with a fixed zero embedding.
        """
        super().__init__(
            stride_level, patch_size_full, sincos_pos_emb, learnable_pos_emb, image_size
        )
        self.num_classes = num_classes + (emb_padding_idx is not None)
        self.dim_class_emb = dim_class_emb
        self.interpolate_class_emb = interpolate_class_emb
        self.emb_padding_idx = emb_padding_idx
        if dim_tokens is not None:
            self.init(dim_tokens)

    def init(self, dim_tokens: int = 768) -> None:
        """Build embedding, projection and position table for width ``dim_tokens``."""
        self.dim_tokens = dim_tokens
        self.class_emb = nn.Embedding(
            self.num_classes, self.dim_class_emb, padding_idx=self.emb_padding_idx
        )
        trunc_normal_(self.class_emb.weight)
        if self.emb_padding_idx is not None:
            with torch.no_grad():
                self.class_emb.weight[self.emb_padding_idx].zero_()
        kernel: int | Size = 1 if self.interpolate_class_emb else self.patch_size
        conv = nn.Conv2d(self.dim_class_emb, dim_tokens, kernel, kernel)
        xavier_uniform_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.proj: nn.Module = conv
        if self.interpolate_class_emb:
            ph, pw = self.patch_size
            shrink = nn.Upsample(scale_factor=(1 / ph, 1 / pw), mode="bilinear")
            self.proj = nn.Sequential(shrink, conv)
        self._init_pos_emb(dim_tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W) class ids -> (B, N, D).

        Raises:
            ValueError: Not (B, H, W), or a size not divisible by the patch.
        """
        if x.ndim != 3:
            raise ValueError(f"expected label maps (B, H, W), got {tuple(x.shape)}")
        self.grid(x.shape[1], x.shape[2])
        return self._to_tokens(self.class_emb(x).permute(0, 3, 1, 2))

    def forward_patches(self, x: Tensor, patch_ids_bk: Tensor) -> Tensor:
        """As for images; ``interpolate_class_emb`` computes all tokens and selects."""
        if self.interpolate_class_emb:
            return gather_tokens(self(x), patch_ids_bk)
        return super().forward_patches(x, patch_ids_bk)

    def _project(self, patches_bkp: Tensor) -> Tensor:
        conv: nn.Conv2d = self.proj  # type: ignore[assignment]
        embedded = self.class_emb(patches_bkp).flatten(2)  # entries (row, column, channel)
        return F.linear(embedded, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


InputAdapter = PatchedInputAdapter | SemSegInputAdapter
