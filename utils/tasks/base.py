"""The interface between the training loop and the tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from multimae.nn.masking import TokenMasks
from utils.data.batches import Batch


class StepPosition(NamedTuple):
    """Position of a micro-batch in the run; together with the seed it determines the masks.

    Attributes:
        step: Optimizer step, from 0.
        first_sample: Index of the first sample in the step's global batch.
        num_samples: Size of the global batch.
        counts: (losses,) :meth:`Task.count` of the global batch / world size, the divisor of summed
            losses; ``None`` if the batch is the global batch.
        num_batches: Micro-batches per step and rank.
        masks: From :meth:`Task.plan`; ``None`` if not drawn yet.
    """

    step: int
    first_sample: int
    num_samples: int
    counts: Tensor | None = None
    num_batches: int = 1
    masks: TokenMasks | None = None


class StepOutput(NamedTuple):
    """Scalar loss with graph, and detached scalars to log, on the device.

    With ``StepPosition.counts``, the sum over the micro-batches of a rank, averaged over ranks, is
    the loss of the global batch.
    """

    loss: Tensor
    logs: dict[str, Tensor]


class Task(nn.Module, ABC):
    """Model and losses in one module, which DDP or FSDP wraps.

    Attributes:
        model: Model saved in checkpoints.
        loss_names: Log keys of the losses that :meth:`count` counts, in its order.
        fp32_output_adapters: Outputs computed in float32.
        compiled: Methods that ``--compile`` turns into one graph each.
        compiled_in_shards: The same of a sharded task, whose blocks and heads are graphs, too.
    """

    model: nn.Module
    loss_names: tuple[str, ...] = ("loss",)
    fp32_output_adapters: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ("_count", "_losses")
    compiled_in_shards: tuple[str, ...] = ("_count", "loss")

    @abstractmethod
    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Losses of a batch: sums over counted samples or values, over ``position.counts``."""

    def draw_masks(self, batch: Batch, position: StepPosition) -> TokenMasks | None:
        """Masks of a batch; ``None`` in tasks without masks."""
        return None

    def plan(self, batch: Batch, position: StepPosition) -> StepPosition:
        """Add the masks of a batch, in tasks with masks, and what its losses count."""
        return position._replace(counts=self.count(batch, position))

    def compile_step(self, *, sharded: bool = False, **options: Any) -> None:
        """Compile the step; options of :func:`torch.compile`. Keys of the weights stay."""
        for name in self.compiled_in_shards if sharded else self.compiled:
            setattr(self, name, torch.compile(getattr(self, name), **options))

    @abstractmethod
    def count(self, batch: Batch, position: StepPosition) -> Tensor:
        """Number of samples or values that each loss counts, int64 (losses,)."""

    def extra_state_dict(self) -> dict[str, Any]:
        """State of balancer and losses, without the model."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("model.")}

    def load_extra_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`extra_state_dict`."""
        own = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        self.load_state_dict({**own, **state}, strict=True)


class Evaluator(Protocol):
    """Evaluates a model."""

    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Metrics by name, equal on all ranks; ``step`` is part of picture names."""
        ...


class PeriodicEvaluator:
    """Base of evaluators that run every ``freq`` epochs, also between evaluations."""

    freq: int


class PictureEvaluator(ABC):
    """Evaluator that logs pictures, not metrics; runs every ``picture_freq`` epochs."""

    @abstractmethod
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Log the pictures of ``step``."""
