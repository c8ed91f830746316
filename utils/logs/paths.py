"""The output folder of a run, and the names of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from multimae.specs.errors import UserError
from multimae.weights.pretrained import WEIGHTS
from utils.config.parse import save_config
from utils.distributed.world import World
from utils.logs.lock import RunLock

Info = Callable[[str], None]


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
    def profile(self) -> Path:
        """Folder of ``--profile``."""
        return self.root / "profile"

    @property
    def wandb_id(self) -> Path:
        """Id of the W&B run."""
        return self.root / "wandb-id.txt"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, see :mod:`utils.checkpoint.checkpoint_files`."""
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        """Weights of the best evaluation."""
        return self.checkpoints / "checkpoint-best.pth"

    def has_checkpoint(self, path: Path | None) -> bool:
        """Whether ``path`` is a checkpoint of this folder, whose run it thus continues."""
        return path is not None and path.resolve().parent == self.checkpoints.resolve()

    def picture(self, name: str, step: int) -> Path:
        """Picture of a step."""
        return self.pictures / f"{name}-{step:06d}.png"

    def class_table(self, split: str) -> Path:
        """Scores per class."""
        return self.root / f"{split}_classes.csv"

    @property
    def lock(self) -> Path:
        """Names the process that writes here, see :mod:`utils.logs.lock`."""
        return self.root / "run.lock"

    def existing(self) -> list[Path]:
        """Files and folders of an earlier run."""
        named = (
            *(self.config, self.log, self.weights_report, self.model, self.nonfinite),
            *(self.pictures, self.tensorboard, self.profile, self.wandb_id, self.checkpoints),
        )
        tables = self.root.glob(self.class_table("*").name)
        return [path for path in (*named, *sorted(tables)) if path.exists()]

    @property
    def previous(self) -> Path:
        """Sub-folder that the next earlier run is moved to."""
        folders = (self.root / f"previous-{n}" for n in count(1))
        return next(folder for folder in folders if not folder.exists())


@contextmanager
def locked_output_dir(output_dir: str, world: World) -> Iterator[RunPaths | None]:
    """Create the output folder and keep other runs out of it (collective).

    Args:
        output_dir: The folder; empty for none.
        world: Processes.

    Yields:
        Its paths; ``None`` if it is empty.

    Raises:
        UserError: It cannot be written to, or another run uses it.
    """
    paths = RunPaths.of(output_dir)
    if paths is None:
        yield None
        return
    lock = RunLock(paths.lock)
    world.broadcast_from_main(lambda: _open(paths, lock))
    try:
        yield paths
    finally:
        if world.is_main:
            lock.release()


def _open(paths: RunPaths, lock: RunLock) -> None:
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as err:
        raise UserError(
            f"output_dir {paths.root} cannot be written to ({err.strerror or err}). "
            "Choose another --output_dir."
        ) from err


def record_start(
    paths: RunPaths | None,
    config: Any,
    world: World,
    info: Info,
    *,
    resumed: bool,
    report: str = "",
) -> None:
    """Record the start of a training run on rank 0, once nothing can fail any more.

    Moves an earlier run aside unless it is resumed, and writes the configuration.

    Args:
        paths: The output folder; ``None`` for none.
        config: The configuration.
        world: Processes.
        info: Called with a line about an earlier run.
        resumed: Whether the run continues that of the folder.
        report: Which keys of the starting weights were loaded; empty if there are none.
    """
    if paths is None or not world.is_main:
        return
    earlier = [] if resumed else paths.existing()
    if earlier:
        previous = paths.previous
        previous.mkdir()
        for path in earlier:
            path.rename(previous / path.name)
        info(f"an earlier run in {paths.root} was moved to {previous}")
    save_config(config, paths.config)
    if report:
        paths.weights_report.write_text(report + "\n", encoding="utf-8", errors="backslashreplace")
