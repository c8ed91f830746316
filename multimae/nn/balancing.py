"""Learned weights of the losses of tasks (SPEC section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class UncertaintyWeightingStrategy(nn.Module):
    """Homoscedastic uncertainty (Kendall et al. 2018): ``exp(-s_t) * L_t + s_t``, ``s`` learned.

    A loss of exactly 0 (no masked token) contributes exactly 0.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        """One learned ``log_vars`` entry per task, initially 0."""
        super().__init__()
        self.tasks = tuple(tasks)
        self.log_vars = nn.Parameter(torch.zeros(len(self.tasks)))

    def forward(
        self,
        losses: Mapping[str, Tensor],
        counts: Mapping[str, Tensor] | None = None,
        num_batches: int = 1,
    ) -> dict[str, Tensor]:
        """Task -> weighted loss.

        Args:
            losses: Task -> loss of the global batch, or the part of a micro-batch.
            counts: Task -> count of the global batch; ``None`` if ``losses`` are complete.
            num_batches: Number of micro-batches whose results are added.

        Raises:
            KeyError: Unknown task.
        """
        out = {}
        for name, loss in losses.items():
            log_var = self.log_vars[self.tasks.index(name)]
            weighted = torch.exp(-log_var) * loss + log_var / num_batches
            nothing = loss == 0.0 if counts is None else counts[name] == 0
            out[name] = torch.where(nothing, loss, weighted)
        return out
