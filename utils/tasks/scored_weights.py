"""Fine-tuned weights that are scored without training: which file, and loading it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from multimae.weights.load import CheckpointError, extract_state_dict, load_weights, read_checkpoint
from multimae.weights.pretrained import described
from utils.checkpoint.files import best_checkpoint
from utils.checkpoint.start_weights import fetch
from utils.config.finetune_options import FinetuneConfig
from utils.logs.errors import UserError


def checkpoint_to_score(cfg: FinetuneConfig) -> Path:
    """``--resume``, else the best of ``--output_dir``, else ``--finetune``."""
    output_dir = cfg.checkpoint.output_dir
    path = Path(cfg.checkpoint.resume) if cfg.checkpoint.resume else None
    if path is None and output_dir:
        path = best_checkpoint(output_dir)
    if path is None and cfg.start.finetune:
        path = fetch(cfg.start.finetune)
    if path is None:
        raise UserError(
            "nothing to score: give a fine-tuned checkpoint by --resume or --finetune, or the "
            "--output_dir of a run"
        )
    return path


def class_names_to_score(cfg: FinetuneConfig, head: str) -> tuple[str, ...]:
    """Classes of a head, as the weights to be scored name them; none if they do not."""
    try:
        spec = described(checkpoint_to_score(cfg))
    except (CheckpointError, OSError) as err:
        raise UserError(f"cannot score: {err}") from err
    heads = spec.heads if spec else ()
    return next((h.target.class_names for h in heads if h.name == head), ())


def load_scored(model: nn.Module, path: Path) -> tuple[int, int]:
    """Load every weight of a fine-tuned checkpoint, heads included; its epoch and step, or 0."""
    try:
        checkpoint = read_checkpoint(path)
        state = extract_state_dict(checkpoint)
        load_weights(model, state, source=str(path), strict=True)
    except CheckpointError as err:
        raise UserError(f"cannot score: {err}") from err
    epoch, step = (checkpoint.get(key, 0) for key in ("epoch", "step"))
    return (epoch, step) if isinstance(epoch, int) and isinstance(step, int) else (0, 0)
