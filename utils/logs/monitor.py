"""What watches the steps of a run: efficiency (MFU, memory) and the profile."""

from __future__ import annotations

from collections.abc import Callable

import torch

from utils.config.options import LogOptions
from utils.data.batches import Batch
from utils.distributed.world import World
from utils.logs.paths import RunPaths
from utils.tasks.base import Task


class RunMonitor:
    """Efficiency on GPUs, or with ``--peak_tflops``; a profile with ``--profile``, of rank 0."""

    def __init__(
        self,
        log: LogOptions,
        task: Task,
        world: World,
        dtype: torch.dtype | None,
        paths: RunPaths | None,
        info: Callable[[str], None],
    ) -> None:
        """Look at ``task`` before it is compiled or sharded; ``dtype``: autocast type."""
        self.efficiency, self.profiler = None, None
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
        if self.efficiency is not None:
            self.efficiency.watch(batch)
        if self.profiler is not None:
            self.profiler.begin(step)

    def end(self, step: int) -> None:
        """After a step."""
        if self.profiler is not None:
            self.profiler.end(step)

    def read(self, images_per_s: float) -> dict[str, float]:
        """Values to log, for the speed of all processes."""
        return {} if self.efficiency is None else self.efficiency.read(images_per_s)

    def close(self) -> None:
        """Write a profile that the end of the run cut short."""
        if self.profiler is not None:
            self.profiler.close()
