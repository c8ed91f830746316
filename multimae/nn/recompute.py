"""Selective activation checkpointing: what a block keeps for its backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

Context = AbstractContextManager[None]


def selective_contexts() -> tuple[Context, Context]:
    """``context_fn`` of :func:`torch.utils.checkpoint.checkpoint`."""
    return create_selective_checkpoint_contexts(keep_products)  # type: ignore[no-untyped-call, no-any-return]


def keep_products(_: object, op: Any, *args: Any, **__: object) -> CheckpointPolicy:
    """Save results of matrix products and attention; recompute the rest of a block.

    Not saved: ``fc2``, the only layer that narrows, whose result no backward pass needs; logits of
    attention; and attention with dropout, whose random numbers later dropout would miss.
    """
    saved = False
    if op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
        saved = args[-1].shape[-1] >= args[-2].shape[-1]
    elif op is torch.ops.aten.bmm.default:
        saved = args[-1].shape[-1] <= args[-2].shape[-1]
    elif "scaled_dot_product" in str(op):
        saved = not any(isinstance(arg, float) and arg for arg in args)  # its only one: dropout
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE
