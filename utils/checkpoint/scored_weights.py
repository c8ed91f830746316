"""Fine-tuned weights that are evaluated without training."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from multimae.specs.errors import UserError
from multimae.weights.downloads import fetch
from multimae.weights.files import CheckpointError, extract_state_dict, read_checkpoint
from multimae.weights.load import load_weights
from utils.checkpoint.find import best_checkpoint
from utils.config.finetune_options import FinetuneConfig


def checkpoint_to_score(cfg: FinetuneConfig) -> Path:
    """Find the weights to evaluate: ``--resume``, best of ``--output_dir``, or ``--finetune``.

    Raises:
        UserError: None of them is set.
    """
    output_dir = cfg.checkpoint.output_dir
    path = Path(cfg.checkpoint.resume) if cfg.checkpoint.resume else None
    if path is None and output_dir:
        path = best_checkpoint(output_dir)
    if path is None and cfg.start.finetune:
        path = fetch(cfg.start.finetune, "--finetune")
    if path is None:
        raise UserError(
            "nothing to score: set --resume or --finetune to a fine-tuned checkpoint, or "
            "--output_dir to the folder of a run"
        )
    return path


def load_finetuned(model: nn.Module, path: Path) -> tuple[int, int]:
    """Load all weights of a fine-tuned checkpoint, including heads.

    Returns:
        Epoch and step of the checkpoint; 0 if it stores none.
    """
    try:
        checkpoint = read_checkpoint(path)
        state = extract_state_dict(checkpoint)
        load_weights(model, state, source=str(path), strict=True)
    except CheckpointError as err:
        raise UserError(f"cannot score: {err}") from err
    epoch, step = (checkpoint.get(key, 0) for key in ("epoch", "step"))
    return (epoch, step) if isinstance(epoch, int) and isinstance(step, int) else (0, 0)
