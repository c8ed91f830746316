"""Cross-entropy of patches of labels, a few tokens at a time.

Logits of many classes are the largest tensors of a step: in float32, with their logarithms and a
gradient, they would be held three times. Here the gradient is computed beside the loss, while a
piece of them is in the processor's cache, and it alone is kept, in the format of the logits.

Shapes: t tokens, k classes, p pixels of a patch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100
"""Label of pixels that do not count."""

_PIECE = {"cpu": 2**18}  # elements at a time: a megabyte in float32
_LARGE_PIECE = 2**26


def patch_cross_entropy(logits_tkp: Tensor, labels_tp: Tensor) -> Tensor:
    """Cross-entropy of every token, the mean over all its pixels; ``IGNORED`` ones count as 0.

    Args:
        logits_tkp: (t, k, p), any float type; computed in float32.
        labels_tp: Class ids (t, p), int64.

    Returns:
        float32 (t,). Can be differentiated once.
    """
    if torch.compiler.is_compiling():  # which fuses the plain form
        loss = F.cross_entropy(
            logits_tkp.float(), labels_tp, reduction="none", ignore_index=IGNORED
        )
        return loss.mean(dim=-1)
    result: Tensor = _PatchCrossEntropy.apply(logits_tkp, labels_tp)  # type: ignore[no-untyped-call]
    return result


class _PatchCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_tkp: Tensor, labels_tp: Tensor) -> Tensor:
        loss = logits_tkp.new_empty(len(labels_tp), dtype=torch.float32)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(logits_tkp) if wanted else None
        for part in _pieces(logits_tkp):
            labels = labels_tp[part].unsqueeze(1)
            counted = labels != IGNORED
            labels = labels.where(counted, 0)
            log_p = logits_tkp[part].float().log_softmax(dim=1)
            loss[part] = (log_p.gather(1, labels) * counted).squeeze(1).mean(dim=-1).neg_()
            if gradient is not None:
                p = log_p.exp_()
                p.scatter_add_(1, labels, p.new_full((), -1.0).expand(labels.shape))
                gradient[part] = p.mul_(counted / labels.shape[-1])
        if wanted:
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_t: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        out = torch.empty_like(gradient)
        for part in _pieces(gradient):
            out[part] = gradient[part].float().mul_(upstream_t[part].view(-1, 1, 1))
        return out, None


def _pieces(x_tkp: Tensor) -> list[slice]:
    """Tokens whose elements fit a cache."""
    per_token = max(1, x_tkp[:1].numel())
    count = max(1, _PIECE.get(x_tkp.device.type, _LARGE_PIECE) // per_token)
    return [slice(i, i + count) for i in range(0, len(x_tkp), count)]
