"""Rollback to the last checkpoint after NaN or Inf (``--on_nonfinite rollback``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from multimae.specs.errors import RunError
from utils.checkpoint.find import latest_checkpoint
from utils.checkpoint.resume import restore
from utils.training.nonfinite import subject

if TYPE_CHECKING:
    from utils.training.loop import TrainingRun


def roll_back(run: TrainingRun, bad: Mapping[int, Sequence[str]]) -> None:
    """Load the last checkpoint; its run will skip the batch of the first bad step (collective).

    Args:
        run: The run.
        bad: Values that are not finite, by the step (from 1) where they began.

    Raises:
        RunError: Too many rollbacks, or no checkpoint.
    """
    run.nonfinite.rolled_back(bad)
    state, world, bad_step = run.state, run.stepper.world, min(bad)
    cause = f"{subject(bad[bad_step])} is not finite at step {bad_step}"
    run.saver.finish()
    folder = run.saver.options.output_dir
    path = world.broadcast_from_main(lambda: latest_checkpoint(folder, run.logger.info))
    if path is None:
        raise RunError(
            f"{cause}, and there is no checkpoint to load: --on_nonfinite rollback needs "
            "--output_dir and --save_ckpt.",
            everywhere=True,
        )
    skipped = state.skipped | {bad_step - 1}
    restore(state, path, world)
    state.skipped |= skipped
    run.logger.info(
        f"{cause}: back to {path}, step {state.step}; the batch of step {bad_step} will be skipped"
    )
    run.logger.rewind(state.step, scored=run.is_scored)
