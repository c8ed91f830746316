"""Which checkpoint a run resumes from.

``--resume`` names a file; with ``--auto_resume`` it is the newest checkpoint of ``--output_dir``
whose checksum matches (:mod:`utils.checkpoint.find`). :mod:`utils.checkpoint.resume` restores it.
"""

from __future__ import annotations

from pathlib import Path

from multimae.specs.errors import UserError
from utils.config.options import CheckpointOptions
from utils.distributed.world import World
from utils.logs.paths import Info, RunPaths


def find_checkpoint(options: CheckpointOptions, world: World, info: Info) -> Path | None:
    """Find the checkpoint of ``--resume`` or, with ``--auto_resume``, the newest one (collective).

    Args:
        options: Where to look.
        world: Processes.
        info: Called with a line about each damaged checkpoint.

    Returns:
        Its path; ``None`` to start from scratch.

    Raises:
        UserError: ``--resume`` is damaged, or all checkpoints are.
    """
    return world.broadcast_from_main(lambda: _find(options, info))


def _find(options: CheckpointOptions, info: Info) -> Path | None:
    if options.resume:
        from utils.checkpoint.find import verify

        verify(Path(options.resume))
        return Path(options.resume)
    if not options.auto_resume or not options.output_dir:
        return None
    paths = RunPaths(Path(options.output_dir))
    if any(path != paths.best for path in paths.checkpoints.glob("checkpoint-*.pth")):
        from utils.checkpoint.find import latest_checkpoint

        path = latest_checkpoint(options.output_dir, info)
        if path is None:
            raise UserError(
                f"cannot resume: no checkpoint in {paths.checkpoints} is intact.\n"
                f"{ways_out(options)}"
            )
        return path
    if published := list(paths.root.glob("checkpoint-*.pth")):
        from utils.checkpoint.find import position

        raise UserError(
            f"{paths.root} holds {len(published)} checkpoints of the published code, the newest "
            f"{max(published, key=position)}. They cannot be resumed; start from their weights "
            f"with --finetune or --init_weights.\n{ways_out(options)}"
        )
    return None


def ways_out(options: CheckpointOptions) -> str:
    """How to start afresh."""
    if options.resume:
        return "Start from its weights instead of --resume, in another --output_dir."
    moved = RunPaths(Path(options.output_dir)).previous
    return (
        "Start afresh with another --output_dir, or with --no_auto_resume, which moves the "
        f"earlier run to {moved}."
    )
