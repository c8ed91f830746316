"""How far losses and gradients of the product's step are from those of the plain one."""

from __future__ import annotations

import torch
from torch import Tensor

from tools.bench.contenders import Contender

STEPS = 3


def step_gaps(fast: Contender, plain: Contender) -> dict[str, float]:
    """Largest relative differences over ``STEPS`` draws of masks, at the weights of ``fast``."""
    with torch.no_grad():
        for own, other in zip(fast.parameters, plain.parameters, strict=True):
            other.copy_(own)
    gaps = {"loss": 0.0, "gradient": 0.0}
    for step in range(STEPS):
        (loss, gradient), (plain_loss, plain_gradient) = (_run(c, step) for c in (fast, plain))
        gaps["loss"] = max(gaps["loss"], abs(loss / plain_loss - 1))
        gap = (gradient - plain_gradient).norm() / plain_gradient.norm()
        gaps["gradient"] = max(gaps["gradient"], float(gap))
    return gaps


def _run(contender: Contender, step: int) -> tuple[float, Tensor]:
    """Loss and gradient of a step."""
    for parameter in contender.parameters:
        parameter.grad = None
    with contender.precision.autocast():
        loss = contender.forward(step)
    loss.backward()  # type: ignore[no-untyped-call]
    parts = [
        torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
        for p in contender.parameters
    ]
    for parameter in contender.parameters:
        parameter.grad = None
    return float(loss), torch.cat(parts)
