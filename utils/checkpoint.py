"""Checkpoints: ``output_dir/checkpoints/checkpoint-{epoch}.pth``.

Each file is a dict readable with ``torch.load(..., weights_only=True)``::

    model      state dict, the published names
    task       balancer and other state beside the model
    optimizer, scaler
    epoch      epochs completed
    step       updates done
    best       best value of the goal's metric, fine-tuning only
    model_ema  running average of the weights, if one is kept
    config     flat resolved configuration

``checkpoint-best.pth`` has the weights (the average, if there is one), ``epoch``, ``step``,
``best`` and ``config`` of the best evaluation: for scoring and starting from, not for resuming.

A file appears under its name only when it is complete: it is written aside, flushed to disk and
renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from multimae.weight_files import atomic_file
from multimae.weights import CheckpointError, extract_state_dict, load_weights, read_checkpoint
from utils.errors import UserError
from utils.options import CheckpointOptions
from utils.state import TrainState

FOLDER = "checkpoints"
BEST = "checkpoint-best.pth"
_NAME = re.compile(r"checkpoint-(\d+)\.pth")
_PARTS = ("model", "task", "optimizer", "scaler", "epoch", "step")


def save_atomically(contents: Mapping[str, Any], path: Path) -> None:
    """``torch.save`` that leaves either the old file or the whole new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        torch.save(dict(contents), file)


def save_checkpoint(state: TrainState, output_dir: str | Path) -> Path:
    """Write the checkpoint of the epochs completed so far; returns its path."""
    path = Path(output_dir) / FOLDER / f"checkpoint-{state.epoch}.pth"
    save_atomically(state.state_dict(), path)
    return path


def save_best(state: TrainState, output_dir: str | Path) -> Path:
    """Write the scored model's weights as the best; returns the path."""
    path = Path(output_dir) / FOLDER / BEST
    contents = {
        "model": state.scored_model.state_dict(),
        "epoch": state.epoch,
        "step": state.step,
        "best": state.best,
        "config": dict(state.config),
    }
    save_atomically(contents, path)
    return path


def best_checkpoint(output_dir: str | Path) -> Path | None:
    """The best checkpoint of ``output_dir``, else the latest, if there is one."""
    path = Path(output_dir) / FOLDER / BEST
    return path if path.is_file() else latest_checkpoint(output_dir)


def latest_checkpoint(output_dir: str | Path) -> Path | None:
    """Checkpoint of the most epochs in ``output_dir``, if there is one."""
    folder = Path(output_dir) / FOLDER
    found = [(int(m[1]), p) for p in folder.glob("*.pth") if (m := _NAME.fullmatch(p.name))]
    return max(found)[1] if found else None


def resume(state: TrainState, options: CheckpointOptions) -> Path | None:
    """Continue from ``--resume``, or from the newest checkpoint with ``--auto_resume``.

    Returns:
        The checkpoint taken, or ``None`` to start afresh.

    Raises:
        UserError: The file is missing, damaged, of another architecture or not a checkpoint of a
            run (weights alone).
    """
    path = Path(options.resume) if options.resume else None
    if path is None and options.auto_resume and options.output_dir:
        path = latest_checkpoint(options.output_dir)
    if path is None:
        return None
    try:
        checkpoint = read_checkpoint(path)
        missing = [part for part in _PARTS if part not in checkpoint]
        if missing:
            raise CheckpointError(
                f"{path} lacks {', '.join(missing)}: it holds weights, not the state of a run, "
                "and cannot be resumed."
            )
        load_weights(state.model, extract_state_dict(checkpoint), source=str(path), strict=True)
    except CheckpointError as err:
        raise UserError(
            f"cannot resume: {err}\nStart afresh with another --output_dir or --no_auto_resume."
        ) from err
    try:
        state.load_state_dict(checkpoint)
    except (RuntimeError, ValueError, KeyError) as err:
        raise UserError(
            f"cannot resume from {path}: its optimiser or balancer state does not fit this run "
            f"({err}). Use the options of that run, see config.yaml beside it."
        ) from err
    return path
