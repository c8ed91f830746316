"""One update of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW

from multimae.nn.network import autocast, autocast_dtype
from utils.config.options import OptimOptions, RuntimeOptions
from utils.data.batches import Batch
from utils.distributed.world import World
from utils.tasks.base import StepPosition, Task
from utils.training.nonfinite import GRAD_NORM
from utils.training.schedule import RunPlan
from utils.training.seeding import seed_everything
from utils.training.state import TrainState


@dataclass(frozen=True)
class Precision:
    """Autocast type of a run; ``None`` is float32 throughout."""

    device_type: str
    dtype: torch.dtype | None

    def autocast(self) -> torch.autocast:
        """Context for a forward pass."""
        return autocast(self.device_type, self.dtype)

    def scaler(self) -> GradScaler:
        """Loss scaler: active for fp16 only."""
        return GradScaler(self.device_type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        """Short name for logs."""
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(self.dtype, "fp32")  # type: ignore[arg-type]


def choose_precision(name: str, device: torch.device) -> Precision:
    """Precision by flag; see :func:`multimae.nn.network.autocast_dtype`."""
    return Precision(device.type, autocast_dtype(name, device))


class Update(NamedTuple):
    """One update: scalars on the device (``loss``, what the task logs, ``grad_norm``).

    Attributes:
        logs: Sums over the accumulated batches; their means over processes are the losses of the
            global batch.
        counted: Bool by name of a loss: whether the global batch holds anything that it counts.
        bad: Names of values that are NaN or infinite; the update was skipped.
    """

    logs: dict[str, Tensor]
    counted: dict[str, Tensor]
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
        self.world, self.precision = world, precision
        self.batch_size, self.global_batch = plan.batch_size, plan.global_batch
        self.clip_grad, self.skip_grad, self.seed = optim.clip_grad, skip_grad, runtime.seed
        self.drop_nonfinite = runtime.on_nonfinite == "skip"
        self.parameters = [p for p in state.task.parameters() if p.requires_grad]
        self.task: nn.Module = state.task
        self.sharded = state.full_model_builder is not None
        self.captures = runtime.compile and runtime.compile_mode != "default"
        self.reads_norm = world.device.type == "cpu"  # which costs nothing there
        fused = isinstance(state.optimizer, Adam | AdamW | SGD) and all(
            group.get("fused") for group in state.optimizer.param_groups
        )
        # With a scale of 1 it changes no gradient; a fused step skips NaN and Inf on the device.
        self.guard = GradScaler(
            precision.device_type,
            init_scale=1.0,
            enabled=fused and not self.reads_norm and not state.scaler.is_enabled(),
        )
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
            What to log, and whether the update was skipped (``--on_nonfinite skip``).
        """
        world = self.world
        seed_everything(self.seed, state.step, world.rank)
        if self.captures:  # until the next call, graphs keep their outputs
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        if len(batches) == 1:  # several are copied one at a time, to count and to train
            batches = [batches[0].to(world.device)]
        buffers = [b.clone() for b in state.task.buffers()] if self.drop_nonfinite else []
        scaler = self.guard if self.guard.is_enabled() else state.scaler
        positions, counted = self._positions(state, batches)
        logs: dict[str, Tensor] = {}
        for batch, position in zip(batches, positions, strict=True):
            with self._gradient_sync(last=batch is batches[-1]):
                with self.precision.autocast():
                    out = self.task(batch.to(world.device), position)
                scaler.scale(out.loss).backward()
            for name, value in {"loss": out.loss.detach(), **out.logs}.items():
                logs[name] = logs[name] + value if name in logs else value
        self.begun = True
        scaler.unscale_(state.optimizer)
        norm, skip = clip_or_skip(self.parameters, self.clip_grad, self.skip_grad)
        logs[GRAD_NORM] = norm
        bad = self._not_finite(logs, scaled=state.scaler.is_enabled())
        if bad:
            for buffer, kept in zip(state.task.buffers(), buffers, strict=True):
                buffer.copy_(kept)
        elif self.skip_grad is None or not skip.item():
            self._optimizer_step(scaler, state.optimizer, norm)
            if state.ema is not None:
                state.ema.update_parameters(state.model)
        scaler.update(1.0 if scaler is self.guard else None)
        state.optimizer.zero_grad(set_to_none=True)
        return Update(logs, counted, bad)

    def _positions(
        self, state: TrainState, batches: Sequence[Batch]
    ) -> tuple[list[StepPosition], dict[str, Tensor]]:
        """Where each batch stands in the update, and whether each loss counts anything in it.

        Losses are means over the global batch, whatever the number of batches and processes: what
        counts in it is known before the first backward pass.
        """
        world, names = self.world, state.task.loss_names
        starts = [
            StepPosition(
                state.step,
                (i * world.size + world.rank) * self.batch_size,
                self.global_batch,
                num_batches=len(batches),
            )
            for i in range(len(batches))
        ]
        drawn = [self._plan(state.task, *pair) for pair in zip(batches, starts, strict=True)]
        parts = [position.counts for position in drawn if position.counts is not None]
        counts = world.sum(torch.stack(parts).sum(dim=0))
        some = counts > 0
        counted = {**dict(zip(names, some.unbind(), strict=True)), "loss": some.any()}
        return [p._replace(counts=counts / world.size) for p in drawn], counted

    @torch.no_grad()
    def _plan(self, task: Task, batch: Batch, position: StepPosition) -> StepPosition:
        """Add the masks of a batch, and what its losses count."""
        return task.plan(batch.to(self.world.device), position)

    def _gradient_sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Reduce gradients over processes after the last batch of an update only.

        A static graph of DDP is known after one synchronized backward pass: the first update
        synchronizes after every batch.
        """
        on = last or (self.static_graph and not self.begun)
        if self.sharded:
            from utils.distributed.sharding import set_gradient_sync

            set_gradient_sync(self.task, on=on)
        if on or not isinstance(self.task, DistributedDataParallel):
            return nullcontext()
        return self.task.no_sync()

    def _optimizer_step(
        self, scaler: GradScaler, optimizer: torch.optim.Optimizer, norm: Tensor
    ) -> None:
        """Step, unless the gradient is not finite.

        Waits for no device: fused optimizers skip on it. For others a gradient that is not finite
        becomes zero; the loop finds the norm before anything is saved.
        """
        if scaler.is_enabled():
            scaler.step(optimizer)
        elif not self.reads_norm:
            bad = ~norm.isfinite()
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(bad, 0.0)
            optimizer.step()
        elif norm.isfinite():
            optimizer.step()

    def _not_finite(self, logs: dict[str, Tensor], *, scaled: bool) -> tuple[str, ...]:
        """NaN and infinite values of any process, with ``--on_nonfinite skip`` (collective).

        The gradient norm may overflow in fp16, whose scaler skips the step.
        """
        if not self.drop_nonfinite:
            return ()
        bad = torch.stack([~value.isfinite() for value in logs.values()]).float()
        flags = self.world.max(bad).tolist()
        names = (n for n, f in zip(logs, flags, strict=True) if f)
        return tuple(n for n in names if not (scaled and n == GRAD_NORM))


def clip_or_skip(
    parameters: Iterable[Tensor], clip_grad: float | None, skip_grad: float | None
) -> tuple[Tensor, Tensor]:
    """Clip gradients by their total norm and say whether to skip the step.

    Nothing here waits for the device; reading ``skip`` costs one synchronisation.

    Args:
        parameters: Those whose gradients count, unscaled.
        clip_grad: Largest total norm; ``None`` does not clip.
        skip_grad: Norm above which to skip, NaN included; ``None`` never skips.

    Returns:
        ``(norm, skip)``: the L2 norm before clipping, and a bool; both 0-D on the device.
    """
    params = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    if hasattr(norm, "full_tensor"):  # sharded by FSDP
        norm = norm.full_tensor()
    if clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(params, clip_grad, norm)
    skip = torch.zeros_like(norm, dtype=torch.bool) if skip_grad is None else ~(norm <= skip_grad)
    return norm, skip
