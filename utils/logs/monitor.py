"""What watches the steps of a run: efficiency (MFU, memory), the profile, kernels of attention."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch

from utils.config.options import RunConfig
from utils.data.batches import Batch
from utils.distributed.world import World
from utils.logs.paths import RunPaths
from utils.tasks.base import Task


class RunMonitor:
    """Efficiency on GPUs, or with ``--peak_tflops``; a profile with ``--profile``, of rank 0.

    With ``--attention``, steps on GPUs run with the kernel chosen at the first one.
    """

    def __init__(
        self,
        cfg: RunConfig,
        task: Task,
        world: World,
        dtype: torch.dtype | None,
        paths: RunPaths | None,
        info: Callable[[str], None],
    ) -> None:
        """Look at ``task`` before it is compiled or sharded; ``dtype``: autocast type."""
        self.efficiency, self.profiler, log = None, None, cfg.log
        self.world, self.dtype, self.info = world, dtype, info
        self.attention: str = cfg.runtime.attention if world.device.type == "cuda" else "default"
        self.chosen, self._step = self.attention == "default", ExitStack()
        if world.device.type == "cuda" or log.peak_tflops is not None:
            from utils.logs.efficiency import Efficiency

            self.efficiency = Efficiency(task, world, dtype, log.peak_tflops)
            info(self.efficiency.describe())
        if log.profile and paths is not None and world.is_main:
            from utils.logs.profiling import StepProfiler, profiled_steps

            steps = profiled_steps(log.profile)
            self.profiler = StepProfiler(steps, paths.profile, world.device, info)

    def begin(self, step: int, batch: Batch) -> None:
        """Before a step."""
        if not self.chosen:
            self._choose_attention(batch)
        elif self.efficiency is not None:
            self.efficiency.watch(batch)
        if self.attention != "default":
            from utils.logs.attention_backend import prefer

            self._step.enter_context(prefer(self.attention))
        if self.profiler is not None:
            self.profiler.begin(step)

    def _choose_attention(self, batch: Batch) -> None:
        """Choose on rank 0 (collective)."""
        from utils.logs.attention_backend import AttentionCalls, attention_seconds, choose_backend

        assert self.efficiency is not None  # on every GPU
        with AttentionCalls() as calls:
            self.efficiency.watch(batch)

        def seconds(name: str) -> float | None:
            dtype = self.dtype or torch.float32
            return attention_seconds(name, calls.counts, dtype, self.world.device)

        self.attention = self.world.broadcast_from_main(
            lambda: choose_backend(self.attention, seconds, self.info)
        )
        self.chosen = True

    def end(self, step: int) -> None:
        """After a step."""
        self._step.close()
        if self.profiler is not None:
            self.profiler.end(step)

    def read(self, images_per_s: float) -> dict[str, float]:
        """Values to log, for the speed of all processes."""
        return {} if self.efficiency is None else self.efficiency.read(images_per_s)

    def close(self) -> None:
        """Write a profile that the end of the run cut short."""
        if self.profiler is not None:
            self.profiler.close()
