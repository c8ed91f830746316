"""Checkpoints of an output folder: the newest intact one, the best one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from multimae.specs.errors import UserError
from utils.checkpoint.checkpoint_files import read_records
from utils.config.options import CheckpointOptions
from utils.logs.paths import Info, RunPaths

_EPOCH = re.compile(r"checkpoint-(\d+)\.pth")
_STEP = re.compile(r"checkpoint-step(\d+)\.pth")


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
    for path in sorted(others, key=position, reverse=True):
        if position(path) >= (0, 0):
            yield path, _unreadable(path)


def position(path: Path) -> tuple[int, int]:
    """Sort key of a checkpoint without a record: epoch checkpoints are newer than step ones."""
    epoch, step = _EPOCH.fullmatch(path.name), _STEP.fullmatch(path.name)
    return (0, int(step[1])) if step else (int(epoch[1]) if epoch else -1, 0)


def _unreadable(path: Path) -> str:
    from multimae.weights.files import CheckpointError, read_checkpoint

    try:
        read_checkpoint(path)
    except CheckpointError as err:
        return str(err)
    return ""


def verify(path: Path) -> None:
    """Check the file of ``--resume`` against its record, if there is one."""
    records = [r for r in read_records(path.parent) if r.file == path.name]
    if path.is_file() and records and not any(r.matches(path.parent) for r in records):
        raise UserError(
            f"cannot resume: {path} is damaged (its checksum differs). Name an older checkpoint, "
            "or omit --resume to use the newest intact one."
        )
