"""When to save, and saving in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multimae.specs.errors import RunError
from utils.checkpoint.checkpoint_files import remove_partial_files, save_best, write_checkpoint
from utils.config.options import CheckpointOptions
from utils.distributed.world import World
from utils.logs.paths import RunPaths
from utils.training.nonfinite import require_finite
from utils.training.state import TrainState


class Saver:
    """Writes the checkpoints of a run; rank 0 writes, all processes call.

    Training waits while the state is copied to host memory; a thread writes the copy. A save waits
    for the previous one.

    Attributes:
        waited: Seconds that training has waited for saves.
    """

    def __init__(self, options: CheckpointOptions, world: World) -> None:
        """Delete partial files of killed runs."""
        self.options, self.world = options, world
        self.active = bool(options.output_dir) and options.save_ckpt
        self.paths = RunPaths(Path(options.output_dir))
        self.folder = self.paths.checkpoints
        self.waited = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copies: dict[str, Any] = {}
        self._begun = self._last = time.monotonic()
        if self.active and world.is_main:
            remove_partial_files(self.folder)

    def minutes_have_passed(self) -> bool:
        """Whether this process's clock says that a save is due."""
        every = self.options.save_ckpt_minutes
        return bool(self.active and every and time.monotonic() - self._last >= 60 * every)

    def due_at(self, step: int) -> bool:
        """Whether a save is due after this step."""
        every = self.options.save_ckpt_steps
        return bool(self.active and every and step % every == 0)

    def defer(self, state: TrainState) -> Callable[[], dict[str, Any]]:
        """The current state for :meth:`write_now`, read when it is needed (collective)."""
        return state.defer_state_dict(self.world) if self.active else dict

    def write_now(self, contents: Callable[[], Mapping[str, Any]]) -> None:
        """Write the result of :meth:`defer` and wait; not collective.

        Raises:
            RunError: It failed.
        """
        if self.active and self.world.is_main:
            self.finish()
            self._write(contents(), at_epoch_end=False)
            self.finish()

    @property
    def failed(self) -> bool:
        """Whether a save has failed, on this process."""
        return self._error is not None

    def save(self, state: TrainState, *, at_epoch_end: bool, wait: bool = False) -> None:
        """Save the run (collective).

        Args:
            state: The run.
            at_epoch_end: It has just completed an epoch.
            wait: Block until the file is written.

        Raises:
            RunError: This save, or the one before, failed.
        """
        if not self.active:
            return
        start = time.monotonic()
        contents = state.state_dict(self.world)
        if self.world.is_main:
            self.finish()
            self._copies = snapshot(contents, self._copies)
            arguments = (self._copies, at_epoch_end)
            self._thread = threading.Thread(target=self._write, args=arguments, name="saver")
            self._thread.start()
            if wait or not self.options.async_save:
                self.finish()
        self._last = time.monotonic()
        self.waited += self._last - start

    def save_best(self, state: TrainState) -> None:
        """Write the scored weights as the best checkpoint (collective).

        Raises:
            RunError: It failed.
        """
        weights = state.scored_weights(self.world) if self.active else {}
        if self.active and self.world.is_main:
            try:
                save_best(state, weights, self.paths.best)
            except OSError as err:
                raise RunError(_failed(self.folder, err)) from err

    def cost(self) -> str:
        """Time spent waiting for saves, for the log."""
        lasted = time.monotonic() - self._begun
        return (
            f"training waited {self.waited:.1f} s for checkpoints, {self.waited / lasted:.2%} of "
            f"{lasted:.0f} s"
        )

    def finish(self) -> None:
        """Wait for a save in progress.

        Raises:
            RunError: It failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the error of a failed save."""
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, RunError):
                raise error
            raise RunError(_failed(self.folder, error)) from error

    def _write(self, contents: Mapping[str, Any], at_epoch_end: bool) -> None:
        try:
            require_finite(contents)
            write_checkpoint(
                contents, self.folder, at_epoch_end=at_epoch_end, keep=self.options.keep_ckpts
            )
        except BaseException as err:  # raised by the training thread
            self._error = err


def snapshot(value: Any, into: Any = None) -> Any:
    """Copy a state to host memory.

    Args:
        value: Tensors and plain values in dicts and lists.
        into: Earlier copy, whose memory is reused where shapes and dtypes match.
    """
    if isinstance(value, Tensor):
        if isinstance(into, Tensor) and (into.shape, into.dtype) == (value.shape, value.dtype):
            return into.copy_(value.detach())
        return torch.empty_like(value, device="cpu").copy_(value.detach())
    if isinstance(value, Mapping):
        old = into if isinstance(into, Mapping) else {}
        return {key: snapshot(item, old.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        earlier = into if isinstance(into, list | tuple) and len(into) == len(value) else value
        same = earlier is not value
        return [snapshot(v, e if same else None) for v, e in zip(value, earlier, strict=True)]
    return value


def _failed(folder: Path, error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or error
    return (
        f"a checkpoint could not be written to {folder} ({reason}). Earlier checkpoints are "
        "intact: free space there and run the same command to resume."
    )
