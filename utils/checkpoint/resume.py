"""Restoring a run from a checkpoint, and what must agree with it.

Options that differ from the checkpoint's are used, reported or refused as each declares
(``on_resume`` in :mod:`utils.config.fields`); other sample names, modalities, parameters or another
global batch are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from multimae.specs.errors import UserError, bullet_list
from multimae.weights.files import CheckpointError, extract_state_dict, read_checkpoint
from multimae.weights.load import load_weights
from multimae.weights.pretrained import SPEC, spec_entry
from utils.checkpoint.resume_point import ways_out
from utils.config.fields import OnResume, Option, options_of
from utils.config.options import RunConfig
from utils.distributed.world import World
from utils.logs.paths import Info, RunPaths
from utils.training.state import TrainState, names_changed

_NEWER = {"robust_unit": 1, "robust_pixels": "valid"}
"""Fields of modalities that older runs lack, and the values that those trained with."""
_PARTS = ("model", "task", "optimizer", "scaler", "epoch", "step")

Fields = dict[str, dict[str, Any]]


def resume(
    state: TrainState,
    path: Path,
    cfg: RunConfig,
    world: World,
    info: Info,
) -> None:
    """Restore ``state`` from a checkpoint whose settings agree with the run's.

    Args:
        state: Changed in place.
        path: From :func:`utils.checkpoint.resume_point.find_checkpoint`.
        cfg: Configuration of the run.
        world: Processes.
        info: Called with a line about each change that is applied.

    Raises:
        UserError: The checkpoint is missing, damaged or holds weights alone, or settings differ
            that may not.
    """
    try:
        checkpoint = _read(path)
        spec = json.loads(spec_entry(state.model)[SPEC])
        own = spec["modalities"]
        old = _old_modalities(checkpoint, own)
        saved, options = checkpoint.get("config"), options_of(cfg)
        saved = dict(saved) if isinstance(saved, Mapping) else {}
        if "modalities" in saved:
            named = options["modalities"].default
            saved["modalities"] = _with_newer_fields(saved["modalities"], old, named)
        changes = compare_options(saved, options)
        refused = [*changes["refused"], *_compare_identity(checkpoint, state.full_identity())]
        refused = refused or list(_compare_modalities(old, own))
        refused = refused or list(_compare_classes(checkpoint, spec))
        if refused:
            raise CheckpointError(
                f"{path} was trained with other settings (old -> new):\n{bullet_list(refused)}\n"
                f"Restore the old values (see config.yaml of that run){_how_to_keep(old, own)}."
            )
        _load(state, checkpoint, path, world)
    except CheckpointError as err:
        raise UserError(f"cannot resume: {err}\n{ways_out(cfg.checkpoint)}") from err
    if "identity" not in checkpoint:
        info(f"{path} is of an older version: its sample names and modalities are not compared")
    info(f"resumed from {path} after epoch {state.epoch}, step {state.step}")
    for change in changes["applied"]:
        info(f"changed on resume: {change}")
    paths = RunPaths.of(cfg.checkpoint.output_dir)
    if state.best is not None and paths is not None and not paths.has_checkpoint(path):
        state.best, state.stale = None, 0
        info(f"the best value starts anew: its checkpoint is not in {paths.root}")


def compare_options(
    saved: Mapping[str, Any], options: Mapping[str, Option]
) -> dict[OnResume, list[str]]:
    """Options of a run (their values are the defaults) that differ from a checkpoint's.

    Returns:
        ``"name: old -> new"`` by what happens to the change.
    """
    changes: dict[OnResume, list[str]] = {"free": [], "applied": [], "refused": []}
    for name, option in options.items():
        if name in saved:
            found = _differences(name, _plain(saved[name]), _plain(option.default))
            changes[option.on_resume] += found
    return changes


def _differences(name: str, old: Any, new: Any) -> Iterator[str]:
    """``"name: old -> new"`` if they differ; for mappings, of each key that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new and not _are_close(old, new):
        yield f"{name}: {_shown(old)} -> {_shown(new)}"


def _are_close(old: Any, new: Any) -> bool:
    """Whether both are NaN, or equal but for rounding, as statistics of other machines."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return all(a == b or _are_close(a, b) for a, b in zip(old, new, strict=True))
    if not (isinstance(old, float) and isinstance(new, float)):
        return False
    return math.isclose(old, new, rel_tol=1e-6) or (math.isnan(old) and math.isnan(new))


def _shown(value: Any) -> str:
    return "none" if value is None else str(value) or "empty"


def _plain(value: Any) -> Any:
    """``value`` with tuples as lists, so that values from YAML and from flags compare equal."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _shares(mix: Sequence[tuple[str, float]]) -> str:
    """Folders of a mix with their shares."""
    return ", ".join(f"{share:.1%} {path}" for path, share in mix) or "one folder"


def _compare_identity(checkpoint: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """Yield differences other than changed options."""
    saved = checkpoint.get("identity")
    saved = saved if isinstance(saved, Mapping) else {}
    batch = saved.get("global_batch", checkpoint.get("global_batch"))
    if batch and own["global_batch"] and batch != own["global_batch"]:
        yield f"batch_size x update_freq x processes: {batch} -> {own['global_batch']}"
    old_mix, mix = (_plain(identity.get("mix") or []) for identity in (saved, own))
    if old_mix != mix:
        yield f"data_path: {_shares(old_mix)} -> {_shares(mix)}"
    for key in ("samples", "modalities", "parameters"):
        old, new = (_plain(identity.get(key)) for identity in (saved, own))
        if old is None or new is None or old == new:
            continue
        if key == "samples":
            yield names_changed("training samples", old, new)
        elif key == "modalities":
            yield f"modalities: {', '.join(old)} -> {', '.join(new)}"
        else:
            yield f"trained parameters: {_first_difference(old, new)}"


def _old_modalities(checkpoint: Mapping[str, Any], own: Fields) -> Fields:
    """Non-default fields of the checkpoint's modalities.

    Checkpoints without a spec are older than the fields of ``_NEWER``; the options tell about the
    other fields.
    """
    if SPEC in checkpoint:
        fields: Fields = json.loads(checkpoint[SPEC])["modalities"]
        return fields
    return {
        name: {key: value for key, value in fields.items() if key not in _NEWER}
        for name, fields in own.items()
    }


def _compare_modalities(old: Fields, own: Fields) -> Iterator[str]:
    """What differs though no option does: statistics or class names of data, newer fields."""
    for name in {**old, **own}:
        before, after = old.get(name), own.get(name)
        if before is not None and after is not None:
            newer = {key: value for key, value in _NEWER.items() if key in {**before, **after}}
            before, after = newer | before, newer | after
        yield from _differences(f"modalities.{name}", before, after)


def _compare_classes(checkpoint: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[str]:
    """Class names of the heads that differ; unnamed classes fit any."""
    old, own = (
        {
            f"{head['name']}.{target}": fields.get("class_names")
            for head in heads
            for target, fields in head["target"].items()
        }
        for heads in (json.loads(checkpoint.get(SPEC, "{}")).get("heads", ()), spec["heads"])
    )
    for name in old.keys() & own.keys():
        if old[name] and own[name] and old[name] != own[name]:
            yield f"class names of {name}: {_first_difference(old[name], own[name])}"


def _with_newer_fields(
    saved: Mapping[str, Any], old: Fields, named: Mapping[str, Any]
) -> dict[str, Any]:
    """Saved ``--modalities``, with the newer fields that this run names as the old run had them."""
    filled = {name: dict(fields) for name, fields in saved.items()}
    for name, fields in named.items():
        for key in _NEWER.keys() & fields.keys():
            if name in old and key not in old[name]:
                filled.setdefault(name, {}).setdefault(key, _NEWER[key])
    return filled


def _how_to_keep(old: Fields, own: Fields) -> str:
    """Flag that keeps newer fields as the old run had them; empty if they do not differ."""
    changed = {
        name: {key: _NEWER[key] for key in _NEWER if key in fields and key not in old[name]}
        for name, fields in own.items()
        if name in old and "source" not in fields
    }
    rows = [
        f"{name}: {{{', '.join(f'{key}: {value}' for key, value in fields.items())}}}"
        for name, fields in changed.items()
        if fields
    ]
    return f", here with --modalities '{{{', '.join(rows)}}}'" if rows else ""


def _first_difference(old: Sequence[str], new: Sequence[str]) -> str:
    pairs = zip_longest(old, new, fillvalue="none")
    before, after = next((a, b) for a, b in pairs if a != b)
    return f"{len(old)} -> {len(new)}, the first that differs: {before} -> {after}"


def restore(state: TrainState, path: Path, world: World) -> None:
    """Load a checkpoint of the same run into ``state``.

    Raises:
        UserError: It cannot be read or does not fit the run.
    """
    try:
        _load(state, _read(path), path, world)
    except CheckpointError as err:
        raise UserError(f"cannot go back: {err}") from err


def _read(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    missing = [part for part in _PARTS if part not in checkpoint]
    if "args" in checkpoint:
        raise CheckpointError(
            f"{path} is a checkpoint of the published code, epoch {checkpoint.get('epoch', '?')}: "
            "its optimizer and schedule cannot be continued here. Start from its weights, "
            f"--init_weights {path} in pre-training or --finetune {path} in fine-tuning; "
            "a fine-tuned one is scored with --eval --resume."
        )
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}: it holds weights, not the state of a run, "
            "and cannot be resumed."
        )
    return checkpoint


def _load(state: TrainState, checkpoint: dict[str, Any], path: Path, world: World) -> None:
    load_weights(state.model, extract_state_dict(checkpoint), source=str(path), strict=True)
    try:
        state.load_state_dict(checkpoint, world)
    except (RuntimeError, ValueError, KeyError) as err:
        raise CheckpointError(
            f"the optimiser or balancer state of {path} does not fit this run ({err}). Use the "
            "options of that run (see its config.yaml)."
        ) from err
