"""What a run leaves on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, cast

import torch

from utils.config import to_flat_dict
from utils.finetune_options import FinetuneConfig
from utils.plan import RunPlan
from utils.planning.machine import disk_free
from utils.planning.setup import Run

# Input, masked input, prediction and truth of every modality, in colour and before compression.
_PANELS, _CHANNELS = 4, 3


@dataclass(frozen=True)
class Disk:
    """Bytes of a run's output folder.

    Attributes:
        checkpoint: One checkpoint, measured.
        checkpoints: How many are kept.
        weights: The final weights, and the best of fine-tuning.
        pictures: Of all evaluations, at most.
        free: On that disk.
    """

    checkpoint: int
    checkpoints: int
    weights: int
    pictures: int
    free: int

    @property
    def total(self) -> int:
        """Everything."""
        return self.checkpoint * self.checkpoints + self.weights + self.pictures


def disk_of(run: Run, plan: RunPlan) -> Disk:
    """What the run will leave; its optimiser must have made a step."""
    cfg = run.cfg
    folder = cfg.checkpoint.output_dir
    saves = bool(folder) and cfg.checkpoint.save_ckpt
    weights = _saved_size(run.state.scored_model.state_dict())
    copies = 2 if isinstance(cfg, FinetuneConfig) and saves else 1 if folder else 0
    return Disk(
        checkpoint=_saved_size(run.state.state_dict()),
        checkpoints=kept_checkpoints(run, plan) if saves else 0,
        weights=copies * weights,
        pictures=_pictures(run, plan) if folder else 0,
        free=disk_free(folder),
    )


def kept_checkpoints(run: Run, plan: RunPlan) -> int:
    """Checkpoints that are there at the end."""
    epochs = -(-plan.total_steps // plan.steps_per_epoch)
    written = -(-epochs // run.cfg.checkpoint.save_ckpt_freq)
    keep = to_flat_dict(run.cfg).get("keep_ckpts")
    return min(written, keep) if isinstance(keep, int) and keep > 0 else written


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
