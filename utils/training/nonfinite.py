"""NaN and Inf in losses, gradients and weights: stop, skip or roll back; name the images."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from multimae.specs.errors import RunError
from utils.distributed.world import ControlGroup
from utils.logs.paths import RunPaths

GRAD_NORM = "grad_norm"
MAX_ATTEMPTS = 10
"""Consecutive skipped steps (``skip``) or total rollbacks after which a run ends."""
MAX_SKIPPED_AT_END = 2
"""Skipped steps with which a run may end; a model that skips more has diverged."""
MIN_LOSS_SCALE = 2.0**-6
"""Loss scale of fp16 below which gradients do not overflow but are NaN or Inf."""

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
                row = {"step": step, "losses": _causes(losses), "names": names}
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")

    def stop(self, bad: Mapping[int, Sequence[str]]) -> RunError:
        """The error that ends a run."""
        step, losses = min(bad), _causes(bad[min(bad)])
        where = f" The images of the step are in {self.path}." if self.path else ""
        return RunError(
            f"{subject(losses)} is not finite at step {step}: {', '.join(losses)}. {_ADVICE}."
            f"{where} No checkpoint was written after it.",
            everywhere=True,
        )

    def record_skipped_step(self, step: int) -> None:
        """Count a skipped update.

        Raises:
            RunError: Too many consecutive updates were skipped.
        """
        in_a_row = self._skipped[-1:] == [step - 1]
        self._skipped = [*(self._skipped if in_a_row else []), step]
        if len(self._skipped) >= MAX_ATTEMPTS:
            raise RunError(
                f"loss or gradient was not finite in {MAX_ATTEMPTS} consecutive steps up to step "
                f"{step + 1}: the model has diverged, and skipping batches does not help. "
                f"{_ADVICE}.",
                everywhere=True,
            )

    def check_end(self, total_steps: int, skipped: Container[int]) -> None:
        """Check that a run does not end with skipped steps only.

        Args:
            total_steps: Steps of the run, all done.
            skipped: Steps (from 0) skipped after a rollback.

        Raises:
            RunError: More than ``MAX_SKIPPED_AT_END`` of the last steps were skipped.
        """
        first = total_steps
        while first - 1 in skipped or first - 1 in self._skipped:
            first -= 1
        if total_steps - first > MAX_SKIPPED_AT_END:
            raise RunError(
                f"loss or gradient was not finite in the last {total_steps - first} steps, from "
                f"step {first + 1}: the model has diverged. {_ADVICE}.",
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
                f"{subject(bad[min(bad)])} is not finite at step {min(bad)} after {MAX_ATTEMPTS} "
                f"rollbacks. {_ADVICE}.",
                everywhere=True,
            )


def subject(values: Sequence[str]) -> str:
    """What is not finite, for messages."""
    return "the gradient" if _causes(values) == [GRAD_NORM] else "the loss"


def _causes(values: Sequence[str]) -> list[str]:
    """The losses among bad values; the gradient norm if all losses are finite."""
    return [name for name in values if name != GRAD_NORM] or list(values)


def require_finite(contents: Mapping[str, Any]) -> None:
    """Check the tensors of a checkpoint before it is written.

    Raises:
        RunError: A weight or optimizer state is NaN or infinite.
    """
    bad = list(_non_finite(contents, ""))
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise RunError(
            f"{bad[0]}{more} hold NaN or infinite values at step {contents.get('step', '?')}: no "
            f"checkpoint is written. Earlier checkpoints are intact; to resume from the last one, "
            f"run the same command. {_ADVICE}."
        )


def _non_finite(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and not value.isfinite().all():
            yield name
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if name or key not in ("window", "rng"):  # logged values may be anything
                yield from _non_finite(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _non_finite(item, f"{name}.{index}")
