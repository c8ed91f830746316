"""Checkpoint files: ``output_dir/checkpoints/``. Resuming is in :mod:`utils.checkpoint.resume`.

``checkpoint-{epoch}.pth`` is saved after an epoch, ``checkpoint-step{step}.pth`` within one (by
step, by minutes or on a signal). Each is a dict for ``torch.load(..., weights_only=True)``::

    model      state dict with the published names
    task       state of balancer and losses
    optimizer, scaler
    epoch      completed epochs
    step       completed steps; with the epoch, the position of the sampler
    skipped    steps whose batches are skipped, see --on_nonfinite rollback
    left_out   names of bad samples, see --on_bad_sample
    best       best value of the goal metric
    model_ema  EMA of the weights, if enabled
    rng        generators of Python, NumPy and torch
    window     logged values since the last log line
    scored     step of the last evaluation
    global_batch, config
    spec       of the model, as JSON
    identity   sample names (fingerprint), modalities, trained parameters; see resume.py

``checkpoint-best.pth`` has the weights (the EMA, if enabled), ``epoch``,
``step``, ``best`` and ``config`` of the best evaluation: for evaluation and fine-tuning, not for
resuming.

Step and checksum of a checkpoint are in ``checkpoint-{epoch}.pth.json``. Both files are written
atomically. Folders of older versions have one ``manifest.json`` instead, which is read, and
replaced at the next save.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from multimae.weights.atomic import Written, atomic_file, checksum, remove_leftovers, write_hashed
from multimae.weights.pretrained import spec_entry
from utils.training.state import TrainState

MAX_STEP_CHECKPOINTS = 2
"""Number of step checkpoints kept."""

_MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(step)?\d+\.pth")


@dataclass(frozen=True)
class Record:
    """Step and checksum of one checkpoint file.

    Attributes:
        file: Name in the folder.
        step: Updates done.
        epoch: Epochs completed.
        size: Bytes.
        digest: Checksum of the contents.
        at_epoch_end: Whether it was saved after an epoch.
    """

    file: str
    step: int
    epoch: int
    size: int
    digest: str
    at_epoch_end: bool

    def matches(self, folder: Path) -> bool:
        """Whether the file exists and has this size and checksum."""
        path = folder / self.file
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return checksum(path).digest == self.digest


def read_records(folder: Path) -> list[Record]:
    """Read the records of all checkpoints, oldest first; damaged ones are ignored.

    A file has two records if a process was killed while replacing it.
    """
    found: list[Record] = []
    for path in folder.glob("checkpoint-*.pth.json"):
        found += _parse(path, None)
    recorded = {r.file for r in found}
    found += (r for r in _parse(folder / _MANIFEST, "checkpoints") if r.file not in recorded)
    return sorted(found, key=lambda r: (r.step, r.epoch, r.at_epoch_end))


def newest_step(folder: Path) -> int | None:
    """Step of the newest checkpoint by its record; ``None`` without records."""
    records = [r for r in read_records(folder) if (folder / r.file).is_file()]
    return records[-1].step if records else None


def _parse(path: Path, key: str | None) -> list[Record]:
    """Records in a file. Names outside the folder are dropped: files are deleted by name."""
    try:
        raw = json.loads(path.read_text("utf-8"))
        records = [Record(**entry) for entry in (raw[key] if key else raw)]
        return [r for r in records if _NAME.fullmatch(r.file) and r.step >= 0]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write_records(folder: Path, file: str, records: Iterable[Record]) -> None:
    text = json.dumps([asdict(r) for r in records]) + "\n"
    with atomic_file(_record_path(folder, file)) as stream:
        stream.write(text.encode())


def _record_path(folder: Path, file: str) -> Path:
    return folder / f"{file}.json"


def write_checkpoint(
    contents: Mapping[str, Any], folder: Path, *, at_epoch_end: bool, keep: int = 0
) -> Path:
    """Write a checkpoint and its record, then delete old checkpoints.

    Args:
        contents: From :meth:`utils.training.state.TrainState.state_dict`.
        folder: ``output_dir/checkpoints``.
        at_epoch_end: Name it after the epoch, not the step.
        keep: Number of epoch checkpoints to keep; 0 keeps all.

    Returns:
        Its path.

    Raises:
        OSError: The disk is full or the folder not writable; older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    step, epoch = int(contents["step"]), int(contents["epoch"])
    name = f"checkpoint-{epoch}.pth" if at_epoch_end else f"checkpoint-step{step}.pth"
    _replace_manifest(folder)
    before = read_records(folder)
    replaced = [r for r in before if r.file == name]

    def record(written: Written) -> Record:
        return Record(name, step, epoch, written.size, written.digest, at_epoch_end)

    def announce(written: Written) -> None:
        # Until the rename, the name still belongs to the replaced file.
        _write_records(folder, name, [*replaced, record(written)])

    written = write_hashed(folder / name, lambda f: torch.save(dict(contents), f), announce)
    if replaced:
        _write_records(folder, name, [record(written)])
    for later in (r for r in before if r.step > step and r.file != name):
        # The run was rewound: this checkpoint is the newest one.
        _record_path(folder, later.file).unlink(missing_ok=True)
    _prune(folder, keep)
    return folder / name


def _replace_manifest(folder: Path) -> None:
    """Replace the manifest of an older version by records."""
    manifest = folder / _MANIFEST
    if manifest.is_file():
        for record in read_records(folder):
            if not _record_path(folder, record.file).is_file():
                same_file = [r for r in read_records(folder) if r.file == record.file]
                _write_records(folder, record.file, same_file)
        manifest.unlink()


def _prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` epoch and ``MAX_STEP_CHECKPOINTS`` step checkpoints."""
    records = read_records(folder)
    epochs = [r.file for r in records if r.at_epoch_end]
    steps = [r.file for r in records if not r.at_epoch_end]
    for file in [*steps[:-MAX_STEP_CHECKPOINTS], *(epochs[:-keep] if keep else [])]:
        (folder / file).unlink(missing_ok=True)
        _record_path(folder, file).unlink(missing_ok=True)


def save_best(state: TrainState, weights: Mapping[str, Any], path: Path) -> None:
    """Write the evaluated model's ``weights`` as the best checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {
        "model": weights,
        "epoch": state.epoch,
        "step": state.step,
        "best": state.best,
        "config": dict(state.config),
        **spec_entry(state.model),
    }
    with atomic_file(path) as file:
        torch.save(contents, file)


def remove_partial_files(folder: Path) -> None:
    """Delete partial files of killed runs (rank 0, before the first save)."""
    if folder.is_dir():
        remove_leftovers(folder)
