"""What a run leaves on the disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import IO, cast

import torch

from tools.planner.machine import disk_free
from tools.planner.trial_run import Run
from utils.checkpoint.files import KEPT_IN_BETWEEN
from utils.config.options import CheckpointOptions
from utils.training.plan import RunPlan

# Input, masked input, prediction and truth of every modality, in colour and before compression.
_PANELS, _CHANNELS = 4, 3


@dataclass(frozen=True)
class Disk:
    """Bytes of a run's output folder.

    Attributes:
        checkpoint: One checkpoint, measured.
        checkpoints: How many are kept.
        deletes: Whether older ones are deleted, after the next is written.
        weights: The final weights, and those of the best evaluation.
        pictures: Of all evaluations, at most.
        free: On that disk.
    """

    checkpoint: int
    checkpoints: int
    deletes: bool
    weights: int
    pictures: int
    free: int

    @property
    def total(self) -> int:
        """Everything."""
        being_written = self.checkpoint * self.deletes
        return self.checkpoint * self.checkpoints + being_written + self.weights + self.pictures


def disk_of(run: Run, plan: RunPlan) -> Disk:
    """What the run will leave; its optimiser must have made a step."""
    cfg = run.cfg
    folder = cfg.checkpoint.output_dir
    saves = bool(folder) and cfg.checkpoint.save_ckpt
    weights = _saved_size(run.state.scored_model.state_dict())
    copies = bool(folder) + (saves and bool(cfg.data.eval_data_path))
    return Disk(
        checkpoint=_saved_size(run.state.state_dict(run.world)),
        checkpoints=kept_checkpoints(run, plan) if saves else 0,
        deletes=saves and _deletes(cfg.checkpoint),
        weights=copies * weights,
        pictures=_pictures(run, plan) if folder else 0,
        free=disk_free(folder),
    )


def kept_checkpoints(run: Run, plan: RunPlan) -> int:
    """Checkpoints that are there at the end: those after epochs, and the last in between."""
    options, total, per_epoch = run.cfg.checkpoint, plan.total_steps, plan.steps_per_epoch
    every = options.save_ckpt_steps
    cut = total % per_epoch > 0  # by max_steps: the last one is not after an epoch
    due = [
        epoch % options.save_ckpt_freq == 0
        or epoch * per_epoch == total
        or (every is not None and epoch * per_epoch % every == 0)
        for epoch in range(1, total // per_epoch + 1)
    ]
    between = int(cut)
    if every is not None:
        between += total // every - total // math.lcm(every, per_epoch)
        between -= cut and total % every == 0
    if options.save_ckpt_minutes is not None:
        between = KEPT_IN_BETWEEN
    after = min(sum(due), options.keep_ckpts or sum(due))
    return after + min(between, KEPT_IN_BETWEEN)


def _deletes(options: CheckpointOptions) -> bool:
    """Whether only the newest checkpoints of some kind are kept."""
    return bool(options.keep_ckpts or options.save_ckpt_steps or options.save_ckpt_minutes)


def _pictures(run: Run, plan: RunPlan) -> int:
    cfg = run.cfg
    if not cfg.data.eval_data_path:
        return 0
    drawn = -(-plan.total_steps // plan.steps_per_epoch // cfg.log.picture_freq)
    rows = len(run.train_set.folder.modalities)
    panel = cfg.model.input_size**2 * _CHANNELS
    return drawn * cfg.log.num_pictures * rows * _PANELS * panel


class _Counter:
    """A file that keeps nothing but its length."""

    def __init__(self) -> None:
        self.length = 0

    def write(self, data: bytes) -> int:
        self.length += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing is held back."""


def _saved_size(contents: object) -> int:
    counter = _Counter()
    torch.save(contents, cast(IO[bytes], counter))
    return counter.length
