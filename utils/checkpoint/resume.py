"""Which checkpoint a run resumes from, and restoring it.

``--resume`` names a file; with ``--auto_resume`` it is the newest checkpoint of ``--output_dir``
whose checksum matches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from multimae.weights.load import CheckpointError, extract_state_dict, load_weights, read_checkpoint
from utils.checkpoint.files import read_records
from utils.config.options import CheckpointOptions
from utils.distributed.world import World
from utils.logs.errors import UserError
from utils.logs.paths import RunPaths
from utils.training.state import TrainState

_EPOCH = re.compile(r"checkpoint-(\d+)\.pth")
_STEP = re.compile(r"checkpoint-step(\d+)\.pth")
_PARTS = ("model", "task", "optimizer", "scaler", "epoch", "step")

Info = Callable[[str], None]


def best_checkpoint(output_dir: str | Path) -> Path | None:
    """Find the best checkpoint of ``output_dir``, else the latest."""
    path = RunPaths(Path(output_dir)).best
    return path if path.is_file() else latest_checkpoint(output_dir)


def latest_checkpoint(output_dir: str | Path, info: Info = print) -> Path | None:
    """Find the newest intact checkpoint of ``output_dir``.

    Args:
        output_dir: Folder of the run.
        info: Called with a line about each newer, damaged one.
    """
    for path, problem in _candidates(RunPaths(Path(output_dir)).checkpoints):
        if not problem:
            return path
        info(f"{problem}: falling back to the checkpoint before it")
    return None


def newest_checkpoint(options: CheckpointOptions) -> Path | None:
    """The readable checkpoint that a run would resume from, without verifying checksums."""
    if options.resume:
        return Path(options.resume)
    if not options.auto_resume or not options.output_dir:
        return None
    found = RunPaths(Path(options.output_dir)).checkpoints.glob("checkpoint-*.pth")
    newest_first = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in newest_first if not _unreadable(path)), None)


def _candidates(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield checkpoints, newest first, each with its problem (empty if intact)."""
    records = read_records(folder)
    seen: set[str] = set()
    for record in reversed(records):
        path = folder / record.file
        if record.file in seen or not path.is_file():
            continue
        seen.add(record.file)
        intact = any(r.matches(folder) for r in records if r.file == record.file)
        yield path, "" if intact else f"{path} is damaged (its checksum differs)"
    # Checkpoints without a record, from other programs: only reading tells whether they are intact.
    recorded = {r.file for r in records}
    others = [p for p in folder.glob("checkpoint-*.pth") if p.name not in recorded]
    for path in sorted(others, key=_position, reverse=True):
        if _position(path) >= (0, 0):
            yield path, _unreadable(path)


def _position(path: Path) -> tuple[int, int]:
    """Sort key of a checkpoint without a record: epoch checkpoints are newer than step ones."""
    epoch, step = _EPOCH.fullmatch(path.name), _STEP.fullmatch(path.name)
    return (0, int(step[1])) if step else (int(epoch[1]) if epoch else -1, 0)


def _unreadable(path: Path) -> str:
    try:
        read_checkpoint(path)
    except CheckpointError as err:
        return str(err)
    return ""


def resume(
    state: TrainState, options: CheckpointOptions, world: World, info: Info = print
) -> Path | None:
    """Restore ``state`` from ``--resume`` or, with ``--auto_resume``, the newest checkpoint.

    Args:
        state: Changed in place.
        options: Where to look (on rank 0).
        world: Processes.
        info: Called with a line about each damaged checkpoint.

    Returns:
        The checkpoint, or ``None`` to start from scratch.

    Raises:
        UserError: ``--resume`` is missing or damaged; a checkpoint is of another architecture, of
            another global batch, or holds weights alone; or all checkpoints are damaged.
    """
    path = world.broadcast_from_main(lambda: find_checkpoint(options, info))
    if path is not None:
        restore(state, path, world)
    return path


def find_checkpoint(options: CheckpointOptions, info: Info) -> Path | None:
    """Find the checkpoint that the options ask for; ``None`` to start from scratch."""
    if options.resume:
        _verify(Path(options.resume))
        return Path(options.resume)
    if not options.auto_resume or not options.output_dir:
        return None
    path, paths = latest_checkpoint(options.output_dir, info), RunPaths(Path(options.output_dir))
    if path is None and any(p != paths.best for p in paths.checkpoints.glob("checkpoint-*.pth")):
        raise UserError(
            f"cannot resume: no checkpoint in {paths.checkpoints} is intact. Start from scratch "
            "with another --output_dir or --no_auto_resume."
        )
    return path


def restore(state: TrainState, path: Path, world: World) -> None:
    """Load a checkpoint into ``state``.

    Raises:
        UserError: It cannot be read or does not fit the run.
    """
    try:
        checkpoint = read_checkpoint(path)
        missing = [part for part in _PARTS if part not in checkpoint]
        if missing:
            raise CheckpointError(
                f"{path} lacks {', '.join(missing)}: it holds weights, not the state of a run, "
                "and cannot be resumed."
            )
        load_weights(state.model, extract_state_dict(checkpoint), source=str(path), strict=True)
    except CheckpointError as err:
        raise UserError(
            f"cannot resume: {err}\n"
            "Start from scratch with another --output_dir or --no_auto_resume."
        ) from err
    saved, own = checkpoint.get("global_batch"), state.global_batch
    if saved is not None and own and saved != own:
        raise UserError(
            f"cannot resume from {path}: it was trained with a global batch of {saved}, this run "
            f"has {own}. Keep --batch_size x --update_freq x processes unchanged, or start from "
            "its weights in another --output_dir."
        )
    try:
        state.load_state_dict(checkpoint, world)
    except (RuntimeError, ValueError, KeyError) as err:
        raise UserError(
            f"cannot resume from {path}: its optimiser or balancer state does not fit this run "
            f"({err}). Use the options of that run, see config.yaml beside it."
        ) from err


def _verify(path: Path) -> None:
    """Check the file of ``--resume`` against its record, if there is one."""
    records = [r for r in read_records(path.parent) if r.file == path.name]
    if path.is_file() and records and not any(r.matches(path.parent) for r in records):
        raise UserError(
            f"cannot resume: {path} is damaged (its checksum differs). Name an older checkpoint, "
            "or omit --resume to use the newest intact one."
        )
