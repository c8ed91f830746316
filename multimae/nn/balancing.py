"""How the losses of several tasks become one (SPEC section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class NoWeightingStrategy(nn.Module):
    """Losses pass unchanged."""

    def forward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task -> loss."""
        return dict(losses)


class UncertaintyWeightingStrategy(nn.Module):
    """Homoscedastic uncertainty (Kendall et al. 2018): ``exp(-s_t) * L_t + s_t``, ``s`` learned.

    A task whose loss is exactly 0 (nothing was masked) contributes exactly 0.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        """One learned ``log_vars`` entry per task, initially 0."""
        super().__init__()
        self.tasks = tuple(tasks)
        self.log_vars = nn.Parameter(torch.zeros(len(self.tasks)))

    def forward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task -> weighted loss.

        Raises:
            KeyError: A loss whose task was not declared.
        """
        out = {}
        for name, loss in losses.items():
            log_var = self.log_vars[self.tasks.index(name)]
            weighted = torch.exp(-log_var) * loss + log_var
            out[name] = torch.where(loss == 0.0, loss, weighted)
        return out
