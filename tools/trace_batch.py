"""List the project files that one batch passes through, from disk to the optimizer step.

    python tools/trace_batch.py
    python tools/trace_batch.py --limit 22

Pre-trains a tiny model on `examples/rooms` for one step, without loader processes. Calls are
recorded while the batch is read and collated, and while `Stepper.step` trains on it, up to the end
of `optimizer.step`; not what the loop does in between. Files are printed in order of entry with
their number of calls. Returns 1 if there are more than `--limit`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

import run_pretraining_multimae
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from tools.house import REPO, TINY_RUN, is_project_file
from utils.data.batches import Batch, BatchStream
from utils.training.stepper import Stepper, Update

MAX_FILES = 22


class FileRecorder:
    """Counts calls of Python functions by project file.

    Attributes:
        calls: File relative to the repository -> calls, in order of entry.
    """

    def __init__(self) -> None:
        """Start with no calls."""
        self.calls: dict[str, int] = {}
        self._names: dict[str, str | None] = {}

    def start(self) -> None:
        """Record the calls of this thread."""
        sys.setprofile(self._record)

    def stop(self) -> None:
        """End the recording."""
        sys.setprofile(None)

    def _record(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code.co_name == "<module>":  # an import, no part of the batch's path
            return
        if code.co_filename not in self._names:
            self._names[code.co_filename] = _relative_name(Path(code.co_filename))
        name = self._names[code.co_filename]
        if name is not None:
            self.calls[name] = self.calls.get(name, 0) + 1


def trace_batch() -> dict[str, int]:
    """Train one step and return the calls by project file, in order of entry."""
    recorder = FileRecorder()
    with tempfile.TemporaryDirectory() as output_dir, _recording(recorder):
        run_pretraining_multimae.main([*TINY_RUN, "--output_dir", output_dir])
    return recorder.calls


@contextmanager
def _recording(recorder: FileRecorder) -> Iterator[None]:
    """Let ``recorder`` follow the reading of a batch and its update."""
    read, step = BatchStream.__next__, Stepper.step

    def recorded_read(stream: BatchStream) -> Batch:
        recorder.start()
        try:
            return read(stream)
        finally:
            recorder.stop()

    def recorded_step(stepper: Stepper, *args: Any, **kwargs: Any) -> Update:
        recorder.start()
        return step(stepper, *args, **kwargs)

    def stop(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        recorder.stop()

    handle = register_optimizer_step_post_hook(stop)
    try:
        with (
            patch.object(BatchStream, "__next__", recorded_read),
            patch.object(Stepper, "step", recorded_step),
        ):
            yield
    finally:
        recorder.stop()
        handle.remove()


def _relative_name(path: Path) -> str | None:
    if not path.is_relative_to(REPO) or not is_project_file(path) or path == Path(__file__):
        return None
    return path.relative_to(REPO).as_posix()


def main(argv: Sequence[str] | None = None) -> int:
    """Trace, print, compare with the limit."""
    parser = CommandParser(__doc__)
    parser.add_argument("--limit", type=int, default=MAX_FILES, help="most files allowed")
    args = parser.parse_args(argv)
    calls = trace_batch()
    for number, (name, count) in enumerate(calls.items(), start=1):
        print(f"{number:>3}  {name:<48}{count:>8}")
    print(f"{len(calls)} files, at most {args.limit} allowed")
    return int(len(calls) > args.limit)


if __name__ == "__main__":
    run_command(main)
