"""Checkpoints: ``output_dir/checkpoints/``.

``checkpoint-{epoch}.pth`` after an epoch, ``checkpoint-step{step}.pth`` in between (saved by step,
by minutes or because of a signal). Each is a dict that ``torch.load(..., weights_only=True)``
reads::

    model      state dict, the published names
    task       balancer and other state beside the model
    optimizer, scaler
    epoch      epochs completed
    step       updates done; with the epoch, the position of the sampler
    skipped    steps whose batches are left out, see --on_nonfinite rollback
    left_out   names of the bad samples met, see --on_bad_sample
    best       best value of the goal's metric
    model_ema  running average of the weights, if one is kept
    rng        generators of python, numpy and torch
    window     logged values since the last log line
    global_batch, config

``checkpoint-best.pth`` has the weights (the average, if there is one), ``epoch``, ``step``,
``best`` and ``config`` of the best evaluation: for scoring and starting from, not for resuming.

A file is written aside, flushed to disk, entered in ``manifest.json`` with its checksum, and
renamed: one that is there under its name is whole. What happens to it later, the checksum finds:
the newest checkpoint that verifies is the one a run goes on from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from multimae.weights.atomic import Written, atomic_file, remove_leftovers, write_hashed
from multimae.weights.load import CheckpointError, extract_state_dict, load_weights, read_checkpoint
from utils.checkpoint.manifest import NAME as MANIFEST
from utils.checkpoint.manifest import Entry, read_manifest, write_manifest
from utils.config.options import CheckpointOptions
from utils.distributed.world import World
from utils.logs.errors import UserError
from utils.training.state import TrainState

FOLDER = "checkpoints"
BEST = "checkpoint-best.pth"
MAX_STEP_CHECKPOINTS = 2
"""Checkpoints between epochs that are kept."""

_EPOCH = re.compile(r"checkpoint-(\d+)\.pth")
_STEP = re.compile(r"checkpoint-step(\d+)\.pth")
_PARTS = ("model", "task", "optimizer", "scaler", "epoch", "step")

Info = Callable[[str], None]


def write_checkpoint(
    contents: Mapping[str, Any], folder: Path, *, at_epoch_end: bool, keep: int = 0
) -> Path:
    """Write a checkpoint, enter it in the manifest and delete what is to be kept no longer.

    Args:
        contents: Of :meth:`utils.training.state.TrainState.state_dict`.
        folder: ``output_dir/checkpoints``.
        at_epoch_end: Named after the epoch, else after the step.
        keep: Newest checkpoints after epochs that are kept; 0: all.

    Returns:
        Its path.

    Raises:
        OSError: The disk is full or the folder not writable; older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    step, epoch = int(contents["step"]), int(contents["epoch"])
    name = f"checkpoint-{epoch}.pth" if at_epoch_end else f"checkpoint-step{step}.pth"
    before = read_manifest(folder)

    def entry(written: Written) -> Entry:
        return Entry(name, step, epoch, written.size, written.digest, at_epoch_end)

    def announce(written: Written) -> None:
        # Until it is renamed, an older file of this name has its own entry.
        write_manifest(folder, [*before, entry(written)])

    written = write_hashed(folder / name, lambda f: torch.save(dict(contents), f), announce)
    kept = [e for e in before if e.file != name and e.step < step] + [entry(written)]
    kept, old = _prune(kept, keep)
    write_manifest(folder, kept)
    for each in old:
        (folder / each.file).unlink(missing_ok=True)
    return folder / name


def _prune(entries: list[Entry], keep: int) -> tuple[list[Entry], list[Entry]]:
    """What stays and what goes, oldest first."""
    epochs = [e for e in entries if e.at_epoch_end]
    between = [e for e in entries if not e.at_epoch_end]
    old = [*between[:-MAX_STEP_CHECKPOINTS], *(epochs[:-keep] if keep else [])]
    return [e for e in entries if e not in old], old


def save_best(state: TrainState, weights: Mapping[str, Any], output_dir: str | Path) -> Path:
    """Write the scored model's ``weights`` as the best; returns the path."""
    folder = Path(output_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "model": weights,
        "epoch": state.epoch,
        "step": state.step,
        "best": state.best,
        "config": dict(state.config),
    }
    with atomic_file(folder / BEST) as file:
        torch.save(contents, file)
    return folder / BEST


def best_checkpoint(output_dir: str | Path) -> Path | None:
    """The best checkpoint of ``output_dir``, else the latest, if there is one."""
    path = Path(output_dir) / FOLDER / BEST
    return path if path.is_file() else latest_checkpoint(output_dir)


def latest_checkpoint(output_dir: str | Path, info: Info = print) -> Path | None:
    """The newest checkpoint that verifies in ``output_dir``, if there is one.

    Args:
        output_dir: Folder of the run.
        info: Told about every newer one that is damaged.
    """
    for path, problem in _candidates(Path(output_dir) / FOLDER):
        if not problem:
            return path
        info(f"{problem}: falling back to the checkpoint before it")
    return None


def _candidates(folder: Path) -> Iterator[tuple[Path, str]]:
    """Checkpoints, newest first, and what is wrong with each; empty if nothing."""
    entries = read_manifest(folder)
    listed = {e.file for e in entries}
    seen: set[str] = set()
    for entry in reversed(entries):
        path = folder / entry.file
        if entry.file in seen or not path.is_file():
            continue
        same_name = [e for e in entries if e.file == entry.file]
        seen.add(entry.file)
        whole = any(e.verifies(folder) for e in same_name)
        yield path, "" if whole else f"{path} is damaged (its checksum differs)"
    # Of other writers, or of before there were manifests: nothing says what they should be.
    others = [p for p in folder.glob("checkpoint-*.pth") if p.name not in listed]
    for path in sorted(others, key=_age, reverse=True):
        if _age(path) >= (0, 0):
            yield path, _unreadable(path)


def _age(path: Path) -> tuple[int, int]:
    epoch, step = _EPOCH.fullmatch(path.name), _STEP.fullmatch(path.name)
    return (int(epoch[1]) if epoch else -1, 0) if not step else (0, int(step[1]))


def _unreadable(path: Path) -> str:
    try:
        read_checkpoint(path)
    except CheckpointError as err:
        return str(err)
    return ""


def resume(
    state: TrainState, options: CheckpointOptions, world: World, info: Info = print
) -> Path | None:
    """Continue from ``--resume``, or from the newest whole checkpoint with ``--auto_resume``.

    Args:
        state: Changed in place.
        options: Where to look; rank 0 does.
        world: Processes.
        info: Told about checkpoints that are damaged.

    Returns:
        The checkpoint taken, or ``None`` to start afresh.

    Raises:
        UserError: ``--resume`` is missing or damaged; a checkpoint is of another architecture, of
            another global batch, or holds weights alone; or all checkpoints are damaged.
    """
    path = world.broadcast_from_main(lambda: _find(options, info))
    if path is not None:
        restore(state, path, world)
    return path


def _find(options: CheckpointOptions, info: Info) -> Path | None:
    """The checkpoint that the options ask for."""
    folder = Path(options.output_dir) / FOLDER
    if options.resume:
        _verify(Path(options.resume))
        return Path(options.resume)
    if not options.auto_resume or not options.output_dir:
        return None
    path = latest_checkpoint(options.output_dir, info)
    if path is None and any(p for p in folder.glob("checkpoint-*.pth") if p.name != BEST):
        raise UserError(
            f"cannot resume: no checkpoint in {folder} is whole. Start afresh with another "
            "--output_dir or --no_auto_resume."
        )
    return path


def restore(state: TrainState, path: Path, world: World) -> None:
    """Set ``state`` to what a checkpoint holds.

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
            f"cannot resume: {err}\nStart afresh with another --output_dir or --no_auto_resume."
        ) from err
    saved, own = checkpoint.get("global_batch"), state.global_batch
    if saved is not None and own and saved != own:
        raise UserError(
            f"cannot resume from {path}: it was trained with a global batch of {saved}, this run "
            f"has {own}, so its steps would mean other samples. Keep --batch_size x --update_freq "
            "x processes as it was, or start from its weights in another --output_dir."
        )
    try:
        state.load_state_dict(checkpoint, world)
    except (RuntimeError, ValueError, KeyError) as err:
        raise UserError(
            f"cannot resume from {path}: its optimiser or balancer state does not fit this run "
            f"({err}). Use the options of that run, see config.yaml beside it."
        ) from err


def prepare_folder(output_dir: str | Path) -> None:
    """Delete what killed runs have left half-written (rank 0, before anything is saved)."""
    folder = Path(output_dir) / FOLDER
    if folder.is_dir():
        remove_leftovers(folder)


def _verify(path: Path) -> None:
    """Check a file that the user names against the manifest beside it, if that knows it."""
    entries = [e for e in read_manifest(path.parent) if e.file == path.name]
    if path.is_file() and entries and not any(e.verifies(path.parent) for e in entries):
        raise UserError(
            f"cannot resume: {path} is damaged (its checksum differs from that in {MANIFEST} "
            "beside it). Name an older checkpoint, or leave --resume away to take the newest that "
            "is whole."
        )
