"""The interface between the training loop and the tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from utils.data.batches import Batch


class StepPosition(NamedTuple):
    """Where a batch stands in the run and its update; masks are a function of it and the seed.

    Attributes:
        step: Optimiser step, from 0.
        first_sample: Index of the batch's first sample in the global batch of that step.
        num_samples: Size of that global batch.
        counts: (losses,) :meth:`Task.count` of the global batch / processes, which sums are divided
            by; ``None`` if the batch is the global batch.
        num_batches: Batches of the step on each process.
    """

    step: int
    first_sample: int
    num_samples: int
    counts: Tensor | None = None
    num_batches: int = 1


class StepOutput(NamedTuple):
    """Scalar loss with its graph, and detached scalars to log, on the device.

    With ``StepPosition.counts`` they are the batch's part: parts add up over the batches of a
    process, and the mean over processes is the loss of the global batch.
    """

    loss: Tensor
    logs: dict[str, Tensor]


class Task(nn.Module, ABC):
    """Owns the model and its losses; wrapped once for distributed training.

    Attributes:
        model: The model, which checkpoints store.
        fp32_output_adapters: Names of the outputs computed in float32.
    """

    model: nn.Module
    fp32_output_adapters: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Losses of one batch: sums over what counts, divided by ``position.counts``."""

    @abstractmethod
    def count(self, batch: Batch, position: StepPosition) -> Tensor:
        """How much of a batch each loss counts (samples or values), int64 (losses,)."""

    def extra_state_dict(self) -> dict[str, Any]:
        """Parameters and buffers of balancer and losses, without the model's."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("model.")}

    def load_extra_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`extra_state_dict`."""
        own = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        self.load_state_dict({**own, **state}, strict=True)


class Evaluator(Protocol):
    """Scores a model."""

    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Metrics by name, equal on all processes; ``step`` names the pictures it writes."""
        ...


class PictureEvaluator(ABC):
    """An evaluator that logs pictures and returns no metrics; it may run less often."""

    @abstractmethod
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Log the pictures of ``step``."""
