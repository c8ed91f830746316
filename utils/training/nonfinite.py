"""NaN and Inf losses: stop, skip or roll back, and record the images of the step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from utils.distributed.control import ControlGroup
from utils.logs.errors import RunError
from utils.logs.paths import RunPaths

MAX_ATTEMPTS = 10
"""Consecutive skipped steps (``skip``) or total rollbacks after which a run ends."""

_ADVICE = (
    "Lower --blr, clip with --clip_grad 1.0, or train in bf16 or fp32 instead of fp16; check the "
    "data for NaN or constant images"
)


class NonFinite:
    """Records the images of unchecked steps and logs those of the bad ones.

    ``output_dir/nonfinite.jsonl`` has one object a line: ``step`` (from 1), ``losses``, ``names``.
    """

    def __init__(self, output_dir: str, control: ControlGroup) -> None:
        """Collective; rank 0 writes."""
        self.control = control
        paths = RunPaths.of(output_dir)
        self.path = None if paths is None else paths.nonfinite
        self._names: dict[int, list[str]] = {}
        self._skipped: list[int] = []
        self._rollbacks = 0

    def watch(self, step: int, names: Sequence[str]) -> None:
        """Remember the images of step ``step`` (from 0)."""
        self._names[step] = list(names)

    def checked(self) -> None:
        """Forget the images: all losses so far are finite."""
        self._names.clear()

    def write(self, bad: Mapping[int, Sequence[str]]) -> None:
        """Log the images of bad steps (collective).

        Args:
            bad: Losses that are not finite, by the step (from 1) where they began.
        """
        for step, losses in bad.items():
            names = self.control.gather(self._names.get(step - 1, ()))
            if self.path is not None and self.control.world.is_main:
                row = {"step": step, "losses": list(losses), "names": names}
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")

    def stop(self, bad: Mapping[int, Sequence[str]]) -> RunError:
        """The error that ends a run."""
        step, losses = next(iter(bad.items()))
        where = f" The images of the step are in {self.path}." if self.path else ""
        return RunError(
            f"the loss is not finite at step {step}: {', '.join(losses)}. {_ADVICE}."
            f"{where} No checkpoint was written after it.",
            everywhere=True,
        )

    def record_skipped_step(self, step: int) -> None:
        """Count a skipped update.

        Raises:
            RunError: Too many consecutive updates were skipped.
        """
        self._names.pop(step, None)
        in_a_row = self._skipped[-1:] == [step - 1]
        self._skipped = [*(self._skipped if in_a_row else []), step]
        if len(self._skipped) >= MAX_ATTEMPTS:
            raise RunError(
                f"the loss was not finite in {MAX_ATTEMPTS} consecutive steps up to step {step + 1}"
                f": the model has diverged, and skipping batches does not help. {_ADVICE}.",
                everywhere=True,
            )

    def rolled_back(self, bad: Mapping[int, Sequence[str]]) -> None:
        """Count a rollback to the last checkpoint.

        Raises:
            RunError: Too many rollbacks.
        """
        self._names.clear()
        self._rollbacks += 1
        if self._rollbacks > MAX_ATTEMPTS:
            raise RunError(
                f"the loss is not finite at step {next(iter(bad))} after {MAX_ATTEMPTS} rollbacks. "
                f"{_ADVICE}.",
                everywhere=True,
            )
