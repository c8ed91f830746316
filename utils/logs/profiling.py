"""A profile of some training steps (``--profile START:END``).

The folder ``profile`` of the output folder gets ``trace.json`` for chrome://tracing or Perfetto,
``operators.txt``, a table of operators and kernels by time, and on a GPU ``memory.json``, the
allocator's segments and blocks (:func:`torch.cuda.memory_snapshot`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_ROWS = 60


def profiled_steps(text: str) -> range:
    """Steps from 0 of ``START:END``, which counts from 1."""
    first, last = map(int, text.split(":"))
    return range(first - 1, last)


def range_problems(text: str) -> Iterator[str]:
    """Why ``text`` is no range of steps."""
    parts = text.split(":")
    numbers = len(parts) == 2 and all(part.isdecimal() for part in parts)
    if not (numbers and 1 <= int(parts[0]) <= int(parts[1])):
        yield f"profile: '{text}' is not START:END, such as 20:22"


class StepProfiler:
    """Records consecutive steps of this process."""

    def __init__(
        self, steps: range, folder: Path, device: torch.device, info: Callable[[str], None]
    ) -> None:
        """Record ``steps`` (from 0); write to ``folder`` after the last one."""
        self.steps, self.folder, self.device, self.info = steps, folder, device, info
        self._recorder: profile | None = None

    def begin(self, step: int) -> None:
        """Start recording, if ``step`` is to be recorded."""
        if self._recorder is None and step in self.steps:
            on_gpu = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self._recorder = profile(
                activities=[ProfilerActivity.CPU, *on_gpu], record_shapes=True, profile_memory=True
            )
            self._recorder.start()

    def end(self, step: int) -> None:
        """Write the files after the last step to record."""
        if step + 1 >= self.steps.stop:
            self.close()

    def close(self) -> None:
        """Write what is recorded, also where the run ends earlier."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)
        recorder.stop()
        self.folder.mkdir(exist_ok=True)
        recorder.export_chrome_trace(str(self.folder / "trace.json"))
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = recorder.key_averages().table(sort_by=order, row_limit=_ROWS)
        (self.folder / "operators.txt").write_text(table + "\n", encoding="utf-8")
        if on_gpu:
            snapshot = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
            (self.folder / "memory.json").write_text(json.dumps(snapshot), encoding="utf-8")
        self.info(f"profile: {self.folder}")
