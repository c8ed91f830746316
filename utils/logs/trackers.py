"""TensorBoard and Weights & Biases: further sinks of :class:`utils.logs.logger.RunLogger`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multimae.specs.errors import UserError
from utils.config.options import LogOptions
from utils.logs.paths import RunPaths


class TensorBoard:
    """Event files in the output folder."""

    def __init__(self, paths: RunPaths | None) -> None:
        """Check the options; :meth:`open` writes.

        Raises:
            UserError: It is not installed, or there is no folder.
        """
        if paths is None:
            raise UserError("--log_tensorboard writes into --output_dir: set one.")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as err:
            raise UserError("--log_tensorboard needs `pip install tensorboard`.") from err
        self._make_writer, self._folder = SummaryWriter, paths.tensorboard
        self._writer: Any = None

    def open(self, step: int) -> None:
        """Log from ``step`` on; viewers ignore what an earlier process has logged after it."""
        self.close(failed=False)
        purge_step = step + 1 if step else None
        self._writer = self._make_writer(str(self._folder), purge_step=purge_step)

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Log a row."""
        for key, value in values.items():
            self._writer.add_scalar(f"{kind}/{key}", value, step)

    def picture(self, name: str, step: int, image: Image.Image) -> None:
        """Log a picture."""
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        """Write what is pending."""
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """A W&B run, which a resumed run continues."""

    def __init__(
        self, options: LogOptions, paths: RunPaths | None, config: Mapping[str, object]
    ) -> None:
        """Check the options; :meth:`open` connects.

        Raises:
            UserError: It is not installed.
        """
        try:
            import wandb
        except ImportError as err:
            raise UserError("--log_wandb needs `pip install wandb`.") from err
        self._wandb, self._options, self._paths, self._config = wandb, options, paths, config
        self._run: Any = None

    def open(self, step: int) -> None:
        """Start the run, once.

        Raises:
            UserError: W&B refuses, for example because no API key is set.
        """
        if self._run is None:
            try:
                self._run = self._start()
            except self._wandb.Error as err:
                reason = " ".join(str(err).split()).removesuffix(".")
                hint = "set WANDB_API_KEY, or WANDB_MODE=offline"
                raise UserError(f"--log_wandb: {reason}; {hint}") from err

    def _start(self) -> Any:
        options, paths = self._options, self._paths
        return self._wandb.init(
            project=options.wandb_project,
            entity=options.wandb_entity,
            name=options.wandb_run_name,
            group=options.wandb_group or None,
            dir=None if paths is None else str(paths.root),
            id=None if paths is None else _run_id(paths.wandb_id),
            resume="allow",
            config=dict(self._config),
        )

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Log a row."""
        self._run.log({f"{kind}/{k}": v for k, v in values.items()}, step=step)

    def picture(self, name: str, step: int, image: Image.Image) -> None:
        """Log a picture."""
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))


def make_trackers(
    options: LogOptions, paths: RunPaths | None, config: Mapping[str, object]
) -> list[TensorBoard | Wandb]:
    """The sinks that the options turn on; arguments and errors of ``RunLogger``."""
    tensorboard = [TensorBoard(paths)] if options.log_tensorboard else []
    return [*tensorboard, *([Wandb(options, paths, config)] if options.log_wandb else [])]


def _run_id(path: Path) -> str:
    """W&B id of the run in this folder, chosen once."""
    if not path.is_file():
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
