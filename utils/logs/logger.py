"""Logs of a run: console, progress bar, JSONL, TensorBoard, Weights & Biases. Rank 0 only.

``output_dir/log.jsonl`` has one JSON object a line::

    {"kind": "train", "step": 50, "epoch": 0.4, "loss": 1.9, "loss/rgb": 0.7, "lr": 1e-4, ...}
    {"kind": "eval", "step": 120, "epoch": 1.0, "eval/rgb": 0.6, "trivial/rgb": 0.9, ...}
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from PIL import Image
from tqdm import tqdm

from multimae.specs.errors import coloured
from utils.config.options import LogOptions
from utils.logs.paths import RunPaths

if TYPE_CHECKING:
    from utils.logs.trackers import TensorBoard, Wandb
    from utils.training.state import Goal

WARNING = "warning: "


class RunLogger:
    """Writes rows and pictures to the sinks of the options; silent on other ranks."""

    def __init__(
        self,
        options: LogOptions,
        output_dir: str,
        config: Mapping[str, object],
        *,
        is_main: bool = True,
    ) -> None:
        """Check the options; :meth:`open` opens the sinks.

        Args:
            options: Which sinks.
            output_dir: Output folder; empty writes no files.
            config: Flat resolved configuration, for W&B.
            is_main: Whether this process logs.

        Raises:
            UserError: A sink's package is missing, or TensorBoard has no folder.
        """
        self.is_main = is_main
        self.paths = RunPaths.of(output_dir)
        self._bar: tqdm[Any] | None = None
        self._jsonl: TextIO | None = None
        self._trackers: list[TensorBoard | Wandb] = []
        if is_main and (options.log_tensorboard or options.log_wandb):
            from utils.logs.trackers import make_trackers

            self._trackers = make_trackers(options, self.paths, config)

    def open(self, step: int = 0) -> None:
        """Open the sinks, once an earlier run is out of the way, to log from ``step`` on."""
        if not self.is_main:
            return
        if self.paths is not None:
            self._jsonl = _open_log(self.paths.log)
        for tracker in self._trackers:
            tracker.open(step)

    def __enter__(self) -> RunLogger:
        """Use as a context that closes files and bars."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every sink."""
        for sink in (self._bar, self._jsonl):
            if sink is not None:
                sink.close()
        for tracker in self._trackers:
            tracker.close(failed=kind is not None)

    def info(self, text: str) -> None:
        """Print a line."""
        if self.is_main:
            if text.startswith(WARNING):
                text = coloured(WARNING, "yellow", sys.stdout) + text.removeprefix(WARNING)
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def start_progress(self, total_steps: int, done: int) -> None:
        """Show a bar with ETA on a terminal; elsewhere log lines have the ETA."""
        self._total, self._first, self._begin = total_steps, done, time.perf_counter()
        if self.is_main and sys.stderr.isatty():
            self._bar = tqdm(
                total=total_steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.05
            )

    def rewind(self, step: int, *, scored: bool) -> None:
        """Drop what was logged after ``step``, where the run starts or resumes; open the sinks.

        Args:
            step: Updates done.
            scored: Whether the evaluation at ``step`` is done.
        """
        if not self.is_main:
            return
        if self._bar is not None:
            self._bar.n = step
        if self._jsonl is not None:
            self._jsonl.close()
        if self.paths is not None and self.paths.log.is_file():
            from utils.logs.log_rows import cut_log

            cut_log(self.paths.log, step, scored=scored)
        self.open(step)

    def advance(self) -> None:
        """Advance the bar by a step."""
        if self._bar is not None:
            self._bar.update()

    def train(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Log a training row."""
        self._row("train", step, epoch, values)
        short = (
            f"loss {values['loss']:.4f}, {_three_digits(values['images_per_s'])} img/s, "
            f"data wait {values['data_wait']:.0%}"
        )
        if "grad_norm" in values:
            short += f", grad norm {values['grad_norm']:.3g}"
        if "mfu" in values:
            short += f", MFU {values['mfu']:.1%}, {values['memory_peak_gb']:.1f} GB"
        if self._bar is not None:
            self._bar.set_postfix_str(short, refresh=False)
        else:
            self.info(
                f"step {step}/{self._total} (epoch {epoch:.2f}) {short}, ETA {self._eta(step)}"
            )

    def eval(
        self,
        step: int,
        epoch: float,
        values: Mapping[str, float],
        goal: Goal | None = None,
        best: float | None = None,
    ) -> None:
        """Log an evaluation row; ``goal`` and its ``best`` value before tell if it is the best."""
        self._row("eval", step, epoch, values)
        if not self.is_main:
            return
        from utils.logs.score_tables import BEST, evaluation_lines

        for line in evaluation_lines(epoch, step, values, goal, best):
            self.info(coloured(line, "green", sys.stdout) if BEST in line else line)

    def picture(self, name: str, step: int, image: Image.Image) -> None:
        """Save a picture as ``pictures/{name}-{step}.png`` and send it to the other sinks."""
        if not self.is_main:
            return
        if self.paths is not None:
            self.paths.pictures.mkdir(exist_ok=True)
            image.save(self.paths.picture(name, step))
        for tracker in self._trackers:
            tracker.picture(name, step, image)

    def _row(self, kind: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        if self._jsonl is not None:
            # JSON has no nan: null.
            finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
            row = {"kind": kind, "step": step, "epoch": round(epoch, 6), **finite}
            self._jsonl.write(json.dumps(row) + "\n")
            self._jsonl.flush()
        for tracker in self._trackers:
            tracker.scalars(kind, step, values)

    def _eta(self, step: int) -> str:
        done = max(1, step - self._first)
        seconds = (time.perf_counter() - self._begin) / done * (self._total - step)
        return tqdm.format_interval(seconds)


def _three_digits(value: float) -> str:
    """A number with three significant digits, and all digits of large ones."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _open_log(path: Path) -> TextIO:
    """Open for appending; add a newline first if the last line is incomplete."""
    log = path.open("a", encoding="utf-8")
    with path.open("rb") as file:
        if log.tell() and file.seek(-1, 2) >= 0 and file.read() != b"\n":
            log.write("\n")
    return log
