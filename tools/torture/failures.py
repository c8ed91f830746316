"""Failures on purpose in runs of two processes (see ``tools/torture_failures.py``)."""

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
from utils.checkpoint.files import write_checkpoint
from utils.data.batches import Batch
from utils.tasks.base import StepOutput, StepPosition
from utils.tasks.pretraining import PretrainTask
from utils.training.state import TrainState
from utils.training.stepper import Stepper, Update

MARK = "struck"
KIND, VICTIM, STEP = "TORTURE_KIND", "TORTURE_VICTIM", "TORTURE_STEP"
LIMIT = 30.0


@dataclass(frozen=True)
class Failure:
    """One kind of failure.

    Attributes:
        cause: Pattern of the sentence that names it; once in the run's output.
        from_outside: Struck by a signal from outside; else by the training process itself.
        code: Exit code expected; ``None``: any but 0 (a launcher has its own).
        layout: Of the run.
    """

    cause: str
    from_outside: bool = False
    code: int | None = None
    layout: Layout = Layout(2, 1)


FAILURES: Mapping[str, Failure] = {
    "nonfinite": Failure(r"error: the loss is not finite at step \d+: loss"),
    "save": Failure(r"error: a checkpoint could not be written to \S+ \(planted\)"),
    "full_disk": Failure(r"error: a checkpoint could not be written to \S+ \(File too large\)"),
    "exception": Failure(r"(?m)^(\[rank\d\]: )?ValueError: planted"),
    "killed_rank": Failure(r"Signal 9 \(SIGKILL\) received by PID", from_outside=True),
    "killed_worker": Failure(r"error: a loader process was killed", from_outside=True),
    "terminated_rank": Failure(r"stopped: (SIGTERM|a signal) after step \d+; saved in", True),
    "terminated_launcher": Failure(r"stopped: SIGTERM after step \d+; saved in", True),
    **{
        name: Failure(rf"stopped: {name} after step \d+; saved in", True, 143, Layout(1, 1))
        for name in ("SIGTERM", "SIGINT", "SIGUSR1")
    },
}


@dataclass(frozen=True)
class Trial:
    """What became of one run.

    Attributes:
        seconds: From the failure to the end of the last process.
        code: Exit code of the launcher.
        named: How often the output names the cause.
        left: Processes that had to be killed.
    """

    seconds: float
    code: int
    named: int
    left: int

    def passed(self, failure: Failure) -> bool:
        """Every process ended in time and by itself, the cause was named once."""
        right = self.code != 0 if failure.code is None else self.code == failure.code
        return right and self.named == 1 and not self.left and self.seconds <= LIMIT


def try_failure(kind: str, runs: RunFactory, folder: Path, seed: int) -> Trial:
    """Start a run, let it fail at a seeded moment, wait for its processes.

    Args:
        kind: Key of :data:`FAILURES`.
        runs: Its ``child`` must call :func:`arm`.
        folder: Of the run.
        seed: Of the moment and the victim.
    """
    rng = random.Random(f"{kind}-{seed}")
    failure = FAILURES[kind]
    layout = failure.layout
    victim = 0 if kind in ("save", "full_disk") else rng.randrange(layout.ranks)
    os.environ.update({KIND: kind, VICTIM: str(victim), STEP: str(rng.randint(3, 12))})
    process = runs.start(layout, folder)
    struck, family = _wait_for_strike(process, folder)
    if failure.from_outside:
        time.sleep(rng.uniform(0, 0.3))
        family = [process.pid, *descendants(process.pid)]
        target, number = _target(kind, process, layout, victim)
        struck = time.time()
        send(target, number)
    ended = time.monotonic() + 2 * LIMIT
    while any(map(alive, family)) and time.monotonic() < ended:
        process.poll()
        time.sleep(0.05)
    seconds = time.time() - struck
    left = [pid for pid in family if alive(pid)]
    for pid in left:
        send(pid)
    code = process.wait()
    text = (folder / "output.txt").read_text(errors="replace")
    return Trial(seconds, code, len(re.findall(failure.cause, text)), len(left))


def _wait_for_strike(process: subprocess.Popen[bytes], folder: Path) -> tuple[float, list[int]]:
    """Time at which the training process marked the moment, and the processes then."""
    mark = folder / MARK
    family, looked = [process.pid], time.monotonic()
    while not mark.is_file():
        if process.poll() is not None:
            raise RuntimeError(f"{folder}: the run ended before it was struck, see output.txt")
        if time.monotonic() - looked > 0.5:
            family, looked = [process.pid, *descendants(process.pid)], time.monotonic()
        time.sleep(0.01)
    return mark.stat().st_mtime, sorted({*family, *descendants(process.pid)})


def _target(
    kind: str, process: subprocess.Popen[bytes], layout: Layout, victim: int
) -> tuple[int, int]:
    """Process and signal of a failure from outside."""
    if layout.ranks == 1:
        return process.pid, signal.Signals[kind]
    if kind == "terminated_launcher":
        return process.pid, signal.SIGTERM
    rank = trainers(process, layout)[victim]
    if kind == "killed_worker":
        return descendants(rank)[-1], signal.SIGKILL
    return rank, signal.SIGTERM if kind == "terminated_rank" else signal.SIGKILL


def arm(output_dir: Path) -> None:
    """In the training process: prepare the failure that the environment names."""
    kind, step = os.environ[KIND], int(os.environ[STEP])
    mark = output_dir / MARK
    if int(os.environ.get("RANK", "0")) != int(os.environ[VICTIM]):
        return
    plant: dict[str, Callable[[Path, int], None]] = {
        "nonfinite": _plant_nonfinite,
        "exception": _plant_exception,
        "save": _plant_save,
        "full_disk": _plant_full_disk,
    }
    plant.get(kind, _plant_mark)(mark, step)


def _plant_mark(mark: Path, step: int) -> None:
    """Only say when the step is reached."""
    original = Stepper.step

    def marked(self: Stepper, state: TrainState, batches: Sequence[Batch]) -> Update:
        if state.step == step:
            mark.touch()
        return original(self, state, batches)

    Stepper.step = marked  # type: ignore[method-assign]


def _plant_nonfinite(mark: Path, step: int) -> None:
    forward = PretrainTask.forward

    def poisoned(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
        out = forward(self, batch, position)
        if position.step != step:
            return out
        mark.touch()
        return out._replace(loss=out.loss * float("nan"))

    PretrainTask.forward = poisoned  # type: ignore[method-assign]


def _plant_exception(mark: Path, step: int) -> None:
    forward = PretrainTask.forward

    def failing(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
        if position.step == step:
            mark.touch()
            raise ValueError("planted")
        return forward(self, batch, position)

    PretrainTask.forward = failing  # type: ignore[method-assign]


def _plant_save(mark: Path, step: int) -> None:
    def failing(contents: Mapping[str, Any], *args: Any, **options: Any) -> Path:
        if contents["step"] < step:
            return write_checkpoint(contents, *args, **options)
        mark.touch()
        raise OSError(errno.EIO, "planted")

    utils.checkpoint.saving.write_checkpoint = failing  # type: ignore[attr-defined]


def _plant_full_disk(mark: Path, step: int) -> None:
    """The system refuses what goes beyond half of a checkpoint, as it does on a full disk."""

    def failing(contents: Mapping[str, Any], folder: Path, **options: Any) -> Path:
        if contents["step"] >= step and not mark.exists():
            size = max(path.stat().st_size for path in folder.glob("*.pth"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
            mark.touch()
        return write_checkpoint(contents, folder, **options)

    utils.checkpoint.saving.write_checkpoint = failing  # type: ignore[attr-defined]
