"""Losses that are not finite: what becomes of the step, and whose images they were."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.distributed.control import ControlGroup
from utils.logs.errors import RunError

JSONL = "nonfinite.jsonl"
LIMIT = 10
"""Steps left out in a row (``skip``) or rollbacks in all after which a run ends."""

_ADVICE = (
    "Lower --blr, clip with --clip_grad 1.0, or train in bf16 or fp32 instead of fp16; check the "
    "data for NaN or constant images"
)


class NonFinite:
    """Remembers the images of steps that have not been checked, and writes down the bad ones.

    ``output_dir/nonfinite.jsonl`` has one object a line: ``step`` (from 1), ``losses``, ``names``.
    """

    def __init__(self, output_dir: str, control: ControlGroup) -> None:
        """All processes make it; rank 0 writes."""
        self.control = control
        self.path = Path(output_dir) / JSONL if output_dir else None
        self._names: dict[int, list[str]] = {}
        self._left_out: list[int] = []
        self._rollbacks = 0

    def watch(self, step: int, names: Sequence[str]) -> None:
        """Note whose images step ``step`` (from 0) trains on."""
        self._names[step] = list(names)

    def checked(self) -> None:
        """Everything so far is finite."""
        self._names.clear()

    def write(self, bad: Mapping[int, Sequence[str]]) -> None:
        """Write down the images of bad steps; all processes call it.

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

    def left_out(self, step: int) -> None:
        """An update was left out.

        Raises:
            RunError: So were the ones before it.
        """
        self._names.pop(step, None)
        in_a_row = self._left_out[-1:] == [step - 1]
        self._left_out = [*(self._left_out if in_a_row else []), step]
        if len(self._left_out) >= LIMIT:
            raise RunError(
                f"the loss was not finite in {LIMIT} steps in a row, up to step {step + 1}: the "
                f"model has diverged, skipping batches does not help. {_ADVICE}.",
                everywhere=True,
            )

    def rolled_back(self, bad: Mapping[int, Sequence[str]]) -> None:
        """The run goes back to its last checkpoint.

        Raises:
            RunError: It has done so too often.
        """
        self._names.clear()
        self._rollbacks += 1
        if self._rollbacks > LIMIT:
            raise RunError(
                f"{LIMIT} rollbacks did not help: the loss is not finite at step {next(iter(bad))} "
                f"either. {_ADVICE}.",
                everywhere=True,
            )
