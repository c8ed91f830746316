"""The interface between the loop and what is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from utils.data.batches import Batch


class StepPosition(NamedTuple):
    """Where a batch stands in the run, so that randomness can be a function of it.

    Attributes:
        step: The update the batch belongs to, from 0.
        first_row: Place of its first sample among the samples of that update over all processes.
        num_rows: Samples of that update over all processes.
    """

    step: int
    first_row: int
    num_rows: int


class StepOutput(NamedTuple):
    """Loss to minimise (scalar with a graph) and detached scalars to log, on the device."""

    loss: Tensor
    logs: dict[str, Tensor]


class Task(nn.Module, ABC):
    """Owns the model and its losses; wrapped once for distribution.

    Attributes:
        model: What is trained and saved.
        fp32_output_adapters: Outputs computed in float32.
    """

    model: nn.Module
    fp32_output_adapters: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Losses of one batch."""

    def extra_state_dict(self) -> dict[str, Any]:
        """State beside the model's: parameters and buffers of balancer and losses."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("model.")}

    def load_extra_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`extra_state_dict`."""
        own = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        self.load_state_dict({**own, **state}, strict=True)


class Pictures:
    """Marks evaluators that draw and give no numbers: they may run less often."""


class Evaluator(Protocol):
    """Something that scores a model."""

    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Metrics by name, equal on all processes; ``step`` names the pictures it may write."""
        ...
