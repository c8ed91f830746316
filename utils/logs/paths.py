"""The output folder of a run, and the names of its files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multimae.weights.pretrained import WEIGHTS
from utils.config.parse import save_config
from utils.distributed.world import World
from utils.logs.errors import UserError


@dataclass(frozen=True)
class RunPaths:
    """Files of an output folder.

    Attributes:
        root: The folder.
    """

    root: Path

    @classmethod
    def of(cls, output_dir: str) -> RunPaths | None:
        """Paths in ``--output_dir``; ``None`` if it is empty and nothing is written."""
        return cls(Path(output_dir)) if output_dir else None

    @property
    def config(self) -> Path:
        """Resolved configuration."""
        return self.root / "config.yaml"

    @property
    def log(self) -> Path:
        """Training and evaluation rows, see :mod:`utils.logs.logger`."""
        return self.root / "log.jsonl"

    @property
    def weights_report(self) -> Path:
        """Which keys of the starting weights were loaded."""
        return self.root / "weights.txt"

    @property
    def model(self) -> Path:
        """Final weights."""
        return self.root / WEIGHTS

    @property
    def nonfinite(self) -> Path:
        """Images of steps with NaN or Inf, see :mod:`utils.training.nonfinite`."""
        return self.root / "nonfinite.jsonl"

    @property
    def pictures(self) -> Path:
        """Folder of pictures."""
        return self.root / "pictures"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        """Id of the W&B run."""
        return self.root / "wandb-id.txt"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, see :mod:`utils.checkpoint.files`."""
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        """Weights of the best evaluation."""
        return self.checkpoints / "checkpoint-best.pth"

    def picture(self, name: str, step: int) -> Path:
        """Picture of a step."""
        return self.pictures / f"{name}-{step:06d}.png"

    def class_table(self, split: str) -> Path:
        """Scores per class."""
        return self.root / f"{split}_classes.csv"


def prepare_output_dir(
    output_dir: str, config: Any, world: World, *, keep_config: bool = False
) -> None:
    """Create the folder and write the resolved configuration into it (rank 0).

    Args:
        output_dir: The folder; empty for none.
        config: The configuration.
        world: Processes.
        keep_config: Keep an existing configuration (of the run that is scored).

    Raises:
        UserError: It cannot be created or written to.
    """
    paths = RunPaths.of(output_dir)
    if paths is None or not world.is_main:
        return
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        # Permission bits do not bind a superuser or a read-only mount: try.
        probe = paths.root / f".write-test-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as err:
        raise UserError(
            f"output_dir {paths.root} cannot be written to ({err.strerror or err}). "
            "Choose another --output_dir."
        ) from err
    if not (keep_config and paths.config.is_file()):
        save_config(config, paths.config)
