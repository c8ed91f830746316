"""Inputs as the weights to start from (or to score) were trained with them.

Normalization, storage, patch size and the like come from the weights. Options that the user did
not set never contradict them; those set on the command line or in YAML do, unless
``--override_inputs`` is given.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from multimae.nn.tokens import plain_sides
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.modalities import PREPARATION, Modality, select
from multimae.specs.preparation import prepared_as
from multimae.specs.spec import ModelSpec
from multimae.weights.files import CheckpointError, StateDict, extract_state_dict, read_checkpoint
from multimae.weights.model_files import find_spec, infer_spec
from utils.checkpoint.start_weights import StartWeights
from utils.config.options import DataOptions, ModelOptions

_SIZES = ("patch_size", "num_global_tokens")


class InputConfig(Protocol):
    """A configuration with inputs and a model."""

    @property
    def data(self) -> DataOptions:
        """Data, with the modality table."""
        ...

    @property
    def model(self) -> ModelOptions:
        """Model."""
        ...


ConfigT = TypeVar("ConfigT", bound=InputConfig)


def trained_spec(
    checkpoint: Path | None, start: StartWeights | None
) -> tuple[str, ModelSpec | None]:
    """Name and spec of the weights that a run continues or scores, else of those it starts from.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        if checkpoint is not None:
            return str(checkpoint), input_spec(checkpoint, read_checkpoint(checkpoint))
        if start is not None:
            keys = start.options.model_key.split("|")
            return str(start.path), input_spec(start.path, start.contents, keys)
    except CheckpointError as err:
        raise UserError(f"cannot read the weights: {err}") from err
    return "", None


def input_spec(
    path: Path, checkpoint: Mapping[str, Any], keys: Sequence[str] = ("model", "module")
) -> ModelSpec | None:
    """Spec of the weights in a file; ``None`` if it does not tell how inputs are prepared.

    A file without a spec has the options of its run (checkpoints of earlier versions), or is a
    published checkpoint, whose inputs are prepared as published. A ViT tells nothing.

    Args:
        path: The file.
        checkpoint: Its contents.
        keys: Where it may have its weights.

    Raises:
        CheckpointError: The file cannot be read.
    """
    spec = find_spec(path, checkpoint)
    if spec is not None:
        return spec
    config = checkpoint.get("config")
    state = extract_state_dict(checkpoint, keys)
    if isinstance(config, Mapping):
        return _spec_of_config(config, state)
    try:
        return infer_spec(path, state, checkpoint)
    except CheckpointError:
        return None


def with_trained_inputs(
    cfg: ConfigT, spec: ModelSpec | None, source: str, *, computes_statistics: bool = False
) -> tuple[ConfigT, list[str]]:
    """Take the preparation of inputs from a spec.

    Args:
        cfg: The configuration.
        spec: Spec of the weights; ``None`` changes nothing.
        source: Name of the weights.
        computes_statistics: The run fills in ``normalization: computed`` itself.

    Returns:
        The configuration, with fields of its ``modalities`` and the patch size from the spec, and
        a line for the log per overridden value.

    Raises:
        UserError: Options contradict the weights, without ``--override_inputs``; or statistics
            are ``computed`` and the weights have none.
    """
    rows: dict[str, dict[str, Any]] = {}
    sizes: dict[str, Any] = {}
    conflicts: list[str] = []
    table, names = cfg.data.table(), cfg.data.in_names
    trained = {} if spec is None else {m.name: m for m in spec.inputs}
    explicit = cfg.data.fields_set()
    inputs = select(table, names)
    for declared in inputs:
        if spec is None or declared.name not in trained:
            continue
        theirs = trained[declared.name]
        if not spec.heads and theirs.no_data is None:
            recipe = {field: getattr(declared, field) for field in cfg.data.recipe_fields}
            theirs = dataclasses.replace(theirs, **recipe)
        row, differing = prepared_as(
            declared, theirs, explicit.get(declared.name, ()), spec.patch_size
        )
        conflicts += (f"{declared.name}: {text}" for text in differing)
        rows[declared.name] = _changed(declared, row)
    if spec is not None and set(trained) & set(names):
        sizes, differing = _sizes(cfg.model, spec)
        conflicts += differing
    notes = refuse_contradictions(conflicts, source, override=cfg.data.override_inputs)
    modalities = {**cfg.data.modalities}
    for name, fields in rows.items():
        if fields:
            modalities[name] = {**modalities.get(name, {}), **fields}
    changed: Any = cfg
    data = dataclasses.replace(cfg.data, modalities=modalities)
    model = dataclasses.replace(cfg.model, **sizes)
    changed = dataclasses.replace(changed, data=data, model=model)
    if not computes_statistics:
        _check_computed(select(data.table(), names), source)
    return changed, notes


def with_trained_options(
    cfg: ConfigT, trained: Mapping[str, Any], source: str
) -> tuple[ConfigT, list[str]]:
    """Take options of ``cfg.data`` from the weights to score.

    Args:
        cfg: The configuration.
        trained: Values of the weights by option.
        source: Name of the weights.

    Returns:
        The configuration, and a line for the log per overridden value.

    Raises:
        UserError: Options that the user set contradict the weights, without ``--override_inputs``.
    """
    data: Any = cfg.data
    other = {
        name: value
        for name, value in trained.items()
        if not math.isclose(value, getattr(data, name), rel_tol=1e-6)
    }
    contradicting = [name for name in other if name in data.set_by_user]
    notes = refuse_contradictions(
        [
            f"{n}: the weights' {_text(other[n])}, yours {_text(getattr(data, n))}"
            for n in contradicting
        ],
        source,
        override=data.override_inputs,
    )
    applied = {name: value for name, value in other.items() if name not in contradicting}
    changed: Any = dataclasses.replace(cfg, data=dataclasses.replace(data, **applied))  # type: ignore[type-var]
    return changed, notes


def _text(value: float) -> str:
    return str(value) if isinstance(value, bool) else f"{value:g}"


def refuse_contradictions(conflicts: Sequence[str], source: str, *, override: bool) -> list[str]:
    """Raise a UserError that lists options contradicting the weights; with ``override``, notes."""
    if conflicts and not override:
        raise UserError(
            f"the options contradict how the weights {source} were trained:\n"
            + bullet_list(conflicts, limit=len(conflicts))
            + "\nDrop these options to use the weights' values, or set --override_inputs."
        )
    return [f"--override_inputs: {text}" for text in conflicts]


def _check_computed(inputs: Sequence[Modality], source: str) -> None:
    names = [m.name for m in inputs if m.normalization == "computed"]
    if names:
        raise UserError(
            f"modalities: {', '.join(names)}: normalization: computed is for pre-training, and "
            f"{source or 'a model without pre-trained weights'} has no statistics. Set mean and "
            "std, as the log of the pre-training names them."
        )


def _changed(declared: Modality, row: Modality) -> dict[str, Any]:
    """Fields of ``row`` that differ from the declared ones, as YAML values."""
    fields = {f: getattr(row, f) for f in PREPARATION if getattr(row, f) != getattr(declared, f)}
    if (
        fields and row.storage == "float"
    ):  # a declared `storage: float` changes the default of max_value
        fields |= {"storage": row.storage, "max_value": row.max_value}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}


def _sizes(model: ModelOptions, spec: ModelSpec) -> tuple[dict[str, Any], list[str]]:
    """Sizes to take from the spec, and those that contradict it."""
    sizes, conflicts = {}, []
    for name in _SIZES:
        theirs, own = getattr(spec, name), getattr(model, name)
        if name not in model.set_by_user:
            sizes[name] = theirs
        elif own is not None and own != theirs:
            conflicts.append(f"{name}: the weights' {theirs}, yours {own}")
    return sizes, conflicts


def _spec_of_config(config: Mapping[str, Any], state: StateDict) -> ModelSpec | None:
    """Spec of the inputs from the options that a checkpoint of an earlier version records."""
    names = dict.fromkeys(k.split(".")[1] for k in state if k.startswith("input_adapters."))
    keys = {f.name for f in dataclasses.fields(DataOptions)} & set(config) - {"in_domains"}
    try:
        table = DataOptions(**{key: config[key] for key in keys}).table()
        return ModelSpec(
            name=str(config["model"]),
            # Earlier versions standardised stored values.
            inputs=tuple(
                dataclasses.replace(table[name], robust_unit=1.0) for name in names if name in table
            ),
            patch_size=int(config["patch_size"]),
            image_size=plain_sides(config["input_size"]),
            num_global_tokens=int(config["num_global_tokens"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
