"""Select the main tasks' tokens from the encoder sequence and arrange them as a feature map.

Shapes: b batch, n tokens of one modality, d width (times the number of main tasks), h x w grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multimae.nn.tokens import Size, TokenLayout

EncoderTokens = Tensor | Sequence[Tensor]


def last_layer(encoder_tokens: EncoderTokens) -> Tensor:
    """Tokens of the last block, from one tensor or a list of layers."""
    return encoder_tokens if isinstance(encoder_tokens, Tensor) else encoder_tokens[-1]


def main_task_grid(layout: TokenLayout, main_tasks: Sequence[str]) -> Size:
    """Common token grid of the main tasks.

    Raises:
        ValueError: A main task is not in the input, or their grids differ.
    """
    missing = [name for name in main_tasks if name not in layout.slices]
    if missing:
        raise ValueError(
            f"the head's main_tasks {', '.join(missing)} are not in the input, which has "
            f"{', '.join(layout.slices)}: add them, or choose other main_tasks"
        )
    grids = {name: layout.slices[name].grid for name in main_tasks}
    first = grids[main_tasks[0]]
    if any(grid != first for grid in grids.values()):
        raise ValueError(
            "the head's main_tasks have different token grids: "
            + ", ".join(f"{name} {h}x{w}" for name, (h, w) in grids.items())
            + "; use one patch size, or a single main task"
        )
    return first


def main_task_tokens(tokens: Tensor, layout: TokenLayout, main_tasks: Sequence[str]) -> Tensor:
    """Concatenate the main tasks' tokens along the width: (b, N+g, D) -> (b, n, d).

    Raises:
        ValueError: The sequence is masked; see also :func:`main_task_grid`.
    """
    main_task_grid(layout, main_tasks)
    expected = layout.num_task_tokens + layout.num_global_tokens
    if tokens.shape[1] != expected:
        raise ValueError(
            f"this head needs all {expected} tokens of the input, got {tokens.shape[1]}: "
            "run the encoder without masks (MultiViT, or mask_inputs=False)"
        )
    parts = [layout.slices[name] for name in main_tasks]
    return torch.cat([tokens[:, part.start : part.stop] for part in parts], dim=-1)


def tokens_to_map(x_bnd: Tensor, grid: Size) -> Tensor:
    """(b, n, d) on ``grid`` -> (b, d, h, w), stored channels last, as convolutions prefer."""
    return x_bnd.reshape(x_bnd.shape[0], *grid, -1).permute(0, 3, 1, 2)
