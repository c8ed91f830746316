"""A further modality for a trained model: a larger description, and weights for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from multimae.multimae import MultiMAE
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec
from multimae.weights.load import LoadReport, load_weights

StateDict = dict[str, Tensor]


def grown_spec(spec: ModelSpec, rows: Sequence[Modality]) -> ModelSpec:
    """The description with further inputs and outputs; the old ones keep their order.

    Raises:
        ValueError: The model is not a pre-trained one, or has a modality of that name.
    """
    if not spec.outputs:
        raise ValueError(f"{spec.name} has no pre-training decoders: nothing can be grafted on it")
    names = {m.name for m in spec.modalities}
    known = [m.name for m in rows if m.name in names]
    if known:
        raise ValueError(f"the model knows {', '.join(known)} already: give another name")
    if not rows:
        raise ValueError("no modality to add")
    outputs = (*spec.outputs, *rows)
    return dataclasses.replace(
        spec,
        inputs=(*spec.inputs, *(m for m in rows if m.source is None)),
        # Copies come last, as pre-training orders them.
        outputs=tuple(sorted(outputs, key=lambda m: m.norm_pix and m.source is not None)),
    )


def graft(
    model: MultiMAE, rows: Sequence[Modality], *, clone: str | None = None, source: str = "model"
) -> tuple[MultiMAE, LoadReport, tuple[str, ...]]:
    """A model with further modalities and the weights of ``model`` in all of its old parts.

    Args:
        model: Pre-trained.
        rows: Modalities to add, as input and target.
        clone: Start the new parts from those of this modality, where shapes fit; what differs in
            channels or patches starts from its mean over channels, or from initial values.
        source: Name of the weights, for the report.

    Returns:
        The larger model; what became of every key; the new keys that were cloned.

    Raises:
        ValueError: See :func:`grown_spec`; no modality ``clone``.
    """
    spec = grown_spec(model.spec, rows)
    names = [m.name for m in model.spec.inputs]
    if clone is not None and clone not in names:
        raise ValueError(f"clone: the model has no input '{clone}'; it has {', '.join(names)}")
    grown = MultiMAE.from_spec(spec)
    state: StateDict = dict(model.state_dict())
    cloned: dict[str, Tensor] = {}
    if clone is not None:
        for row in rows:
            cloned |= _cloned(state, grown.state_dict(), clone, row.name)
    report = load_weights(grown, {**state, **cloned}, source=source)
    return grown.eval(), report, tuple(cloned)


def _cloned(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], old: str, new: str
) -> StateDict:
    """Values for the keys of the modality ``new`` from those of ``old``."""
    out: StateDict = {}
    for key, target in own.items():
        parts = key.split(".")
        if new not in parts:
            continue
        origin = ".".join(old if part == new else part for part in parts)
        value = state.get(origin)
        if value is None:
            continue
        if value.shape != target.shape:
            value = _fitted(key, value, target)
        if value is not None:
            out[key] = value.clone()
    return out


def _fitted(key: str, value: Tensor, target: Tensor) -> Tensor | None:
    """A patch projection of other channels: their mean, which keeps the size of its outputs."""
    projects = key.endswith(".proj.weight") and value.ndim == target.ndim == 4
    if not projects or value.shape[0] != target.shape[0] or value.shape[2:] != target.shape[2:]:
        return None
    mean = value.float().mean(dim=1, keepdim=True)
    scale = value.shape[1] / target.shape[1]
    return (mean * scale).expand_as(target).to(value.dtype)


def size_of_new_parts(model: MultiMAE, names: Sequence[str]) -> int:
    """Parameters that belong to some modalities alone."""
    return sum(
        p.numel()
        for key, p in model.named_parameters()
        if any(name in key.split(".") for name in names)
    )
