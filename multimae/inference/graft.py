"""Add modalities to a pre-trained model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from multimae.multimae import MultiMAE
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec
from multimae.weights.load import LoadReport, load_weights

StateDict = dict[str, Tensor]


def grown_spec(spec: ModelSpec, modalities: Sequence[Modality]) -> ModelSpec:
    """Append inputs and outputs to a spec; existing ones keep their order.

    Raises:
        ValueError: The model has no pre-training decoders, or already has such a modality.
    """
    if not spec.outputs:
        raise ValueError(f"{spec.name} has no pre-training decoders: cannot add a modality")
    names = {m.name for m in spec.modalities}
    known = [m.name for m in modalities if m.name in names]
    if known:
        raise ValueError(f"the model already has {', '.join(known)}: choose another name")
    if not modalities:
        raise ValueError("no modality to add")
    outputs = (*spec.outputs, *modalities)
    return dataclasses.replace(
        spec,
        inputs=(*spec.inputs, *(m for m in modalities if m.source is None)),
        # Extra norm_pix targets come last, as in pre-training.
        outputs=tuple(sorted(outputs, key=lambda m: m.norm_pix and m.source is not None)),
    )


def graft(
    model: MultiMAE,
    modalities: Sequence[Modality],
    *,
    clone: str | None = None,
    source: str = "model",
) -> tuple[MultiMAE, LoadReport, tuple[str, ...]]:
    """Build a model with additional modalities that keeps all weights of ``model``.

    Args:
        model: Pre-trained model.
        modalities: Modalities to add, as inputs and targets.
        clone: Initialise the new adapters from this modality's where shapes match. A patch
            projection with another number of channels starts from the mean over channels.
        source: Name of the weights, for the report.

    Returns:
        The extended model, the load report, and the new keys initialised from ``clone``.

    Raises:
        ValueError: See :func:`grown_spec`; or ``clone`` is not an input.
    """
    spec = grown_spec(model.spec, modalities)
    names = [m.name for m in model.spec.inputs]
    if clone is not None and clone not in names:
        raise ValueError(f"clone: the model has no input '{clone}'; it has {', '.join(names)}")
    grown = MultiMAE.from_spec(spec)
    state: StateDict = dict(model.state_dict())
    cloned: dict[str, Tensor] = {}
    if clone is not None:
        for modality in modalities:
            cloned |= _cloned(state, grown.state_dict(), clone, modality.name)
    report = load_weights(grown, {**state, **cloned}, source=source)
    return grown.eval(), report, tuple(cloned)


def _cloned(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], old: str, new: str
) -> StateDict:
    """Initial values for the keys of modality ``new``, copied from ``old``."""
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
            value = _average_channels(key, value, target)
        if value is not None:
            out[key] = value.clone()
    return out


def _average_channels(key: str, value: Tensor, target: Tensor) -> Tensor | None:
    """Patch projection averaged over input channels, scaled to keep the output magnitude."""
    projects = key.endswith(".proj.weight") and value.ndim == target.ndim == 4
    if not projects or value.shape[0] != target.shape[0] or value.shape[2:] != target.shape[2:]:
        return None
    mean = value.float().mean(dim=1, keepdim=True)
    scale = value.shape[1] / target.shape[1]
    return (mean * scale).expand_as(target).to(value.dtype)


def count_parameters_of(model: MultiMAE, names: Sequence[str]) -> int:
    """Number of parameters specific to the modalities ``names``."""
    return sum(
        p.numel()
        for key, p in model.named_parameters()
        if any(name in key.split(".") for name in names)
    )
