"""Inject failures into runs and check how their processes end."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import utils.checkpoint.saving
from tools.torture.small_runs import Layout, RunFactory, alive, descendants, send, trainers
from utils.checkpoint.checkpoint_files import write_checkpoint
from utils.data.batches import Batch
from utils.tasks.base import StepOutput, StepPosition
from utils.tasks.pretraining import PretrainTask
from utils.training.state import TrainState
from utils.training.stepper import Stepper, Update

MARKER = "failure-injected"
KIND, VICTIM, STEP = "TORTURE_KIND", "TORTURE_VICTIM", "TORTURE_STEP"
TIME_LIMIT_S = 30.0


@dataclass(frozen=True)
class Failure:
    """One kind of failure.

    Attributes:
        cause: Pattern of its message, expected once in the run's output.
        external: A signal from outside; else raised inside the training process.
        code: Expected exit code; ``None`` accepts any but 0.
        layout: Processes and workers of the run.
    """

    cause: str
    external: bool = False
    code: int | None = None
    layout: Layout = Layout(2, 1)


FAILURES: Mapping[str, Failure] = {
    "nonfinite": Failure(r"error: the loss is not finite at step \d+: loss"),
    "save": Failure(r"error: a checkpoint could not be written to \S+ \(planted\)"),
    "full_disk": Failure(r"error: a checkpoint could not be written to \S+ \(File too large\)"),
    "exception": Failure(r"(?m)^(\[rank\d\]: )?ValueError: planted"),
    "killed_rank": Failure(r"Signal 9 \(SIGKILL\) received by PID", external=True),
    "killed_worker": Failure(r"error: a loader process was killed", external=True),
    "terminated_rank": Failure(r"stopped: (SIGTERM|a signal) after step \d+; saved in", True),
    "terminated_launcher": Failure(r"stopped: SIGTERM after step \d+; saved in", True),
    **{
        name: Failure(rf"stopped: {name} after step \d+; saved in", True, 143, Layout(1, 1))
        for name in ("SIGTERM", "SIGINT", "SIGUSR1")
    },
}


@dataclass(frozen=True)
class Trial:
    """The end of one run.

    Attributes:
        seconds: Time from the failure to the end of the last process.
        code: Exit code of the launcher.
        named: Number of times the output names the cause.
        hanging: Processes that had to be killed.
    """

    seconds: float
    code: int
    named: int
    hanging: int

    def passed(self, failure: Failure) -> bool:
        """Return whether every process exited in time and the cause was named once."""
        expected = self.code != 0 if failure.code is None else self.code == failure.code
        return expected and self.named == 1 and not self.hanging and self.seconds <= TIME_LIMIT_S


def try_failure(kind: str, runs: RunFactory, folder: Path, seed: int) -> Trial:
    """Start a run, make it fail at a seeded moment, wait for its processes.

    Args:
        kind: Key of :data:`FAILURES`.
        runs: Factory whose ``child`` calls :func:`inject`.
        folder: Output folder.
        seed: Seed of the step and the rank.
    """
    rng = random.Random(f"{kind}-{seed}")
    failure = FAILURES[kind]
    layout = failure.layout
    victim = 0 if kind in ("save", "full_disk") else rng.randrange(layout.ranks)
    os.environ.update({KIND: kind, VICTIM: str(victim), STEP: str(rng.randint(3, 12))})
    process = runs.start(layout, folder)
    failed_at, family = _wait_for_failure(process, folder)
    if failure.external:
        time.sleep(rng.uniform(0, 0.3))
        family = [process.pid, *descendants(process.pid)]
        target, number = _target(kind, process, layout, victim)
        failed_at = time.time()
        send(target, number)
    ended = time.monotonic() + 2 * TIME_LIMIT_S
    while any(map(alive, family)) and time.monotonic() < ended:
        process.poll()
        time.sleep(0.05)
    seconds = time.time() - failed_at
    hanging = [pid for pid in family if alive(pid)]
    for pid in hanging:
        send(pid)
    code = process.wait()
    text = (folder / "output.txt").read_text(errors="replace")
    return Trial(seconds, code, len(re.findall(failure.cause, text)), len(hanging))


def _wait_for_failure(process: subprocess.Popen[bytes], folder: Path) -> tuple[float, list[int]]:
    """Wait for the marker file; return its time and the processes running then."""
    marker = folder / MARKER
    family, looked = [process.pid], time.monotonic()
    while not marker.is_file():
        if process.poll() is not None:
            raise RuntimeError(f"{folder}: the run ended before the failure, see output.txt")
        if time.monotonic() - looked > 0.5:
            family, looked = [process.pid, *descendants(process.pid)], time.monotonic()
        time.sleep(0.01)
    return marker.stat().st_mtime, sorted({*family, *descendants(process.pid)})


def _target(
    kind: str, process: subprocess.Popen[bytes], layout: Layout, victim: int
) -> tuple[int, int]:
    """Return the process and the signal of an external failure."""
    if layout.ranks == 1:
        return process.pid, signal.Signals[kind]
    if kind == "terminated_launcher":
        return process.pid, signal.SIGTERM
    rank = trainers(process, layout)[victim]
    if kind == "killed_worker":
        return descendants(rank)[-1], signal.SIGKILL
    return rank, signal.SIGTERM if kind == "terminated_rank" else signal.SIGKILL


def inject(output_dir: Path) -> None:
    """Patch the training process to fail as the environment variables say."""
    kind, step = os.environ[KIND], int(os.environ[STEP])
    marker = output_dir / MARKER
    if int(os.environ.get("RANK", "0")) != int(os.environ[VICTIM]):
        return
    patches: dict[str, Callable[[Path, int], None]] = {
        "nonfinite": _patch_nonfinite,
        "exception": _patch_exception,
        "save": _patch_save,
        "full_disk": _patch_full_disk,
    }
    patches.get(kind, _patch_marker)(marker, step)


def _patch_marker(marker: Path, step: int) -> None:
    """Only write the marker at the step."""
    original = Stepper.step

    def marked(self: Stepper, state: TrainState, batches: Sequence[Batch]) -> Update:
        if state.step == step:
            marker.touch()
        return original(self, state, batches)

    Stepper.step = marked  # type: ignore[method-assign]


def _patch_nonfinite(marker: Path, step: int) -> None:
    forward = PretrainTask.forward

    def poisoned(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
        out = forward(self, batch, position)
        if position.step != step:
            return out
        marker.touch()
        return out._replace(loss=out.loss * float("nan"))

    PretrainTask.forward = poisoned  # type: ignore[method-assign]


def _patch_exception(marker: Path, step: int) -> None:
    forward = PretrainTask.forward

    def failing(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
        if position.step == step:
            marker.touch()
            raise ValueError("planted")
        return forward(self, batch, position)

    PretrainTask.forward = failing  # type: ignore[method-assign]


def _patch_save(marker: Path, step: int) -> None:
    def failing(contents: Mapping[str, Any], *args: Any, **options: Any) -> Path:
        if contents["step"] < step:
            return write_checkpoint(contents, *args, **options)
        marker.touch()
        raise OSError(errno.EIO, "planted")

    utils.checkpoint.saving.write_checkpoint = failing  # type: ignore[attr-defined]


def _patch_full_disk(marker: Path, step: int) -> None:
    """Limit file sizes to half a checkpoint, which fails like a full disk."""

    def failing(contents: Mapping[str, Any], folder: Path, **options: Any) -> Path:
        if contents["step"] >= step and not marker.exists():
            size = max(path.stat().st_size for path in folder.glob("*.pth"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
            marker.touch()
        return write_checkpoint(contents, folder, **options)

    utils.checkpoint.saving.write_checkpoint = failing  # type: ignore[attr-defined]
