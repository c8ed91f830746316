"""One update of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.config.options import OptimOptions, RuntimeOptions
from utils.data.batches import Batch
from utils.distributed.sharding import set_exchange
from utils.distributed.world import World
from utils.tasks.base import StepPosition
from utils.training.optim import clip_or_skip
from utils.training.plan import RunPlan
from utils.training.precision import Precision
from utils.training.seeding import seed_everything
from utils.training.state import TrainState


class Update(NamedTuple):
    """One update: scalars on the device (``loss``, what the task logs, ``grad_norm``).

    Attributes:
        logs: Means over the accumulated batches.
        bad: Names of those that were not finite, for which the update was left out.
    """

    logs: dict[str, Tensor]
    bad: tuple[str, ...] = ()


class Stepper:
    """One update: forward and backward over the accumulated batches, clip, optimiser step."""

    def __init__(
        self,
        state: TrainState,
        world: World,
        plan: RunPlan,
        precision: Precision,
        optim: OptimOptions,
        runtime: RuntimeOptions,
        skip_grad: float | None = None,
    ) -> None:
        """Wrap the task for distribution."""
        self.world, self.plan, self.precision = world, plan, precision
        self.clip_grad, self.skip_grad, self.seed = optim.clip_grad, skip_grad, runtime.seed
        self.drop_nonfinite = runtime.on_nonfinite == "skip"
        self.parameters = [p for p in state.task.parameters() if p.requires_grad]
        self.task: nn.Module = state.task
        self.sharded = state.blueprint is not None
        self.static_graph, self.begun = runtime.find_unused_params and not self.sharded, False
        if world.size > 1 and not self.sharded:
            # The same parameters take part in every step: those that do not are found once.
            self.task = DistributedDataParallel(
                state.task,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                static_graph=self.static_graph,
            )

    def step(self, state: TrainState, batches: Sequence[Batch]) -> Update:
        """Update the weights from ``accum_steps`` batches.

        Returns:
            What to log, and whether the update was left out (``--on_nonfinite skip``).
        """
        accum, world = self.plan.accum_steps, self.world
        seed_everything(self.seed, state.step, world.rank)
        buffers = [b.clone() for b in state.task.buffers()] if self.drop_nonfinite else []
        logs: dict[str, Tensor] = {}
        for micro, batch in enumerate(batches):
            first = (micro * world.size + world.rank) * self.plan.batch_size
            position = StepPosition(state.step, first, self.plan.global_batch)
            with self._exchanging(last=micro == accum - 1):
                with self.precision.autocast():
                    out = self.task(batch.to(world.device), position)
                state.scaler.scale(out.loss / accum).backward()
            for name, value in {"loss": out.loss.detach(), **out.logs}.items():
                logs[name] = logs[name] + value / accum if name in logs else value / accum
        self.begun = True
        state.scaler.unscale_(state.optimizer)
        norm, skip = clip_or_skip(self.parameters, self.clip_grad, self.skip_grad)
        logs["grad_norm"] = norm
        bad = self._not_finite(logs, scaled=state.scaler.is_enabled())
        if bad:
            for buffer, kept in zip(state.task.buffers(), buffers, strict=True):
                buffer.copy_(kept)
        elif self.skip_grad is None or not skip.item():
            state.scaler.step(state.optimizer)
            if state.ema is not None:
                state.ema.update_parameters(state.model)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        return Update(logs, bad)

    def _exchanging(self, *, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients after the last batch of an update; before, they add up.

        A static graph of DDP is known after one backward pass with an exchange: the first update
        has one after every batch.
        """
        on = last or (self.static_graph and not self.begun)
        if self.sharded:
            set_exchange(self.task, on=on)
        if on or not isinstance(self.task, DistributedDataParallel):
            return nullcontext()
        return self.task.no_sync()

    def _not_finite(self, logs: dict[str, Tensor], *, scaled: bool) -> tuple[str, ...]:
        """Values of any process that spoil an update, if such updates are to be left out.

        A gradient norm alone may overflow in fp16: the loss scaler handles that.
        """
        if not self.drop_nonfinite:
            return ()
        bad = torch.stack([~value.isfinite() for value in logs.values()]).float()
        flags = self.world.max(bad).tolist()
        names = (n for n, f in zip(logs, flags, strict=True) if f)
        return tuple(n for n in names if not (scaled and n == "grad_norm"))
