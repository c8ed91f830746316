"""Load weights into models and report the result for every key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multimae.nn.tokens import resize_pos_emb
from multimae.weights.files import CheckpointError, StateDict

_MAX_SHOWN = 4


def is_hf_vit(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a ViT or ViTMAE from Hugging Face."""
    patch = "embeddings.patch_embeddings.projection.weight"
    return patch in state or f"vit.{patch}" in state


def is_vit_state_dict(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a ViT from timm."""
    return "patch_embed.proj.weight" in state and "blocks.0.norm1.weight" in state


@dataclass(frozen=True)
class Mismatch:
    """A key with incompatible shapes in file and model."""

    key: str
    file_shape: tuple[int, ...]
    model_shape: tuple[int, ...]

    def __str__(self) -> str:
        """``key (file 2x3, model 4x3)``."""
        return f"{self.key} (file {_shape(self.file_shape)}, model {_shape(self.model_shape)})"


@dataclass(frozen=True)
class LoadReport:
    """Result of loading, by key.

    Attributes:
        source: Name of the file, for messages.
        loaded: Keys copied unchanged.
        resized: Keys copied after resizing: position tables, class embeddings with padding class.
        new: Keys of the model only; they keep their initial values.
        unused: Keys of the file only.
        mismatched: Keys with incompatible shapes; the model keeps its initial values.
    """

    source: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]

    def summary(self) -> str:
        """Counts, and the first keys of every group but ``loaded``."""
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        for label, keys in (
            ("resized", self.resized),
            ("new (not in the file)", self.new),
            ("unused (not in the model)", self.unused),
            ("with another shape, not loaded", self.mismatched),
        ):
            if keys:
                lines.append(f"  {len(keys)} {label}: {_first(keys)}")
        return "\n".join(lines)

    def details(self) -> str:
        """One line per key with its result."""
        results: tuple[tuple[str, tuple[object, ...]], ...] = (
            ("loaded", self.loaded),
            ("resized", self.resized),
            ("new", self.new),
            ("unused", self.unused),
            ("mismatched", self.mismatched),
        )
        return "\n".join(f"{result:<10} {key}" for result, keys in results for key in keys)


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str, strict: bool = False
) -> LoadReport:
    """Load all weights with matching names and compatible shapes.

    Position tables (``*.pos_emb``) of another grid are resized bicubically. A class embedding with
    one class fewer than the model's gets zeros for the padding class.

    Args:
        model: Changed in place, unless an error is raised.
        state_dict: Weights by name, without keys that must not be loaded, such as old heads.
        source: Name of the file, for messages.
        strict: Require equal names and shapes.

    Returns:
        The result by key.

    Raises:
        CheckpointError: No key (of the encoder, if there is one) matches, weights are not finite,
            or ``strict`` and names or shapes differ.
    """
    own: StateDict = model.state_dict()
    fitted: StateDict = {}
    loaded, resized, mismatched = [], [], []
    for key, target in own.items():
        value = state_dict.get(key)
        if value is None:
            continue
        if value.shape == target.shape:
            fitted[key] = value
            loaded.append(key)
        elif (fit := _fit(key, value, target)) is not None:
            fitted[key] = fit
            resized.append(key)
        else:
            mismatched.append(Mismatch(key, tuple(value.shape), tuple(target.shape)))
    report = LoadReport(
        source,
        tuple(loaded),
        tuple(resized),
        new=tuple(k for k in own if k not in state_dict),
        unused=tuple(k for k in state_dict if k not in own),
        mismatched=tuple(mismatched),
    )
    body = [k for k in own if k.startswith("encoder.")] or list(own)
    differs = report.resized or report.new or report.unused or report.mismatched
    if (strict and differs) or not any(k in fitted for k in body):
        raise CheckpointError(_does_not_fit(report, state_dict, own))
    bad = [k for k, v in fitted.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{source}: {len(bad)} of {len(fitted)} tensors hold NaN or infinite values: "
            f"{_first(bad)}. The run that wrote it had diverged; use an earlier checkpoint."
        )
    model.load_state_dict(fitted, strict=False)
    return report


def describe_architecture(state: Mapping[str, Tensor]) -> str:
    """Describe the architecture in one line, inferred from names and shapes."""
    if is_vit_state_dict(state):
        width, depth = len(state["patch_embed.proj.weight"]), len(_children(state, "blocks."))
        return (
            f"a ViT of width {width}, depth {depth}; "
            "tools/vit2multimae_converter.py converts it to a MultiMAE"
        )
    if "global_tokens" not in state:
        return f"not a MultiMAE: {len(state)} tensors, {_first(list(state)) or 'none'}"
    inputs = []
    for name in _children(state, "input_adapters."):
        classes = state.get(f"input_adapters.{name}.class_emb.weight")
        proj = state.get(f"input_adapters.{name}.proj.weight")
        if classes is not None:
            name += f" ({classes.shape[0]} classes)"
        elif proj is not None:
            name += f" ({_shape(proj.shape[1:])} patches)"
        inputs.append(name)
    return (
        f"width {state['global_tokens'].shape[-1]}, depth {len(_children(state, 'encoder.'))}, "
        f"inputs {', '.join(inputs) or 'none'}, "
        f"outputs {', '.join(_children(state, 'output_adapters.')) or 'none'}"
    )


def _fit(key: str, value: Tensor, target: Tensor) -> Tensor | None:
    """Resize ``value`` to the target's shape; ``None`` if the shapes are incompatible."""
    if key.endswith(".pos_emb") and value.ndim == 4 and value.shape[:2] == target.shape[:2]:
        return resize_pos_emb(value.float(), (target.shape[2], target.shape[3]), "bicubic")
    if key.endswith(".class_emb.weight") and target.shape == (value.shape[0] + 1, value.shape[1]):
        return torch.cat([value, value.new_zeros(1, value.shape[1])])
    return None


def _does_not_fit(report: LoadReport, file: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    lines = [
        f"checkpoint {report.source} does not fit this model.",
        f"  file:  {describe_architecture(file)}",
        f"  model: {describe_architecture(own)}",
    ]
    for label, keys in (
        ("with another shape", report.mismatched),
        ("with another size", report.resized),
        ("missing in the file", report.new),
        ("unknown to the model", report.unused),
    ):
        if keys:
            lines.append(f"  {len(keys)} {label}: {_first(keys)}")
    lines.append("Choose the model, input size and modalities that the checkpoint was made with.")
    return "\n".join(lines)


def _children(state: Mapping[str, Tensor], prefix: str) -> list[str]:
    """Distinct path components after ``prefix``, in order."""
    return list(
        dict.fromkeys(k[len(prefix) :].split(".")[0] for k in state if k.startswith(prefix))
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _first(keys: Sequence[object]) -> str:
    more = f", ... ({len(keys) - _MAX_SHOWN} more)" if len(keys) > _MAX_SHOWN else ""
    return ", ".join(map(str, keys[:_MAX_SHOWN])) + more
