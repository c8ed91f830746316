"""Models that describe themselves: a weight file that says what model to build for it.

The description is JSON in the header of a safetensors file: the registered size, the modality rows
(with their normalisation statistics and class names), patch and image size, and the decoders::

    model = load_model("weights/multimae-tiny_rooms.safetensors")
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from multimae.build import DecoderOptions, build_pretrain_model
from multimae.modalities import Modality, make_table, select
from multimae.multimae import MultiMAE
from multimae.weight_files import (
    CheckpointError,
    extract_state_dict,
    read_checkpoint,
    read_metadata,
    save_state_dict,
)
from multimae.weights import load_weights

KEY = "multimae"
"""The entry of the file's metadata."""


@dataclass(frozen=True)
class ModelSpec:
    """What :func:`multimae.build.build_pretrain_model` needs to know.

    Attributes:
        name: Registered builder, e.g. ``pretrain_multimae_tiny``.
        inputs: Rows of the inputs, in sequence order.
        outputs: Rows of the targets.
        patch_size: Patch side where a row names none, in full-resolution pixels.
        image_size: Side of the images it was trained on, in pixels.
        num_global_tokens: Learned global tokens.
        decoder: Shape of the decoders.
    """

    name: str
    inputs: tuple[Modality, ...]
    outputs: tuple[Modality, ...]
    patch_size: int = 16
    image_size: int = 224
    num_global_tokens: int = 1
    decoder: DecoderOptions = dataclasses.field(default_factory=DecoderOptions)

    def build(self, drop_path_rate: float = 0.0) -> MultiMAE:
        """The model, with initial weights.

        Args:
            drop_path_rate: Stochastic depth of the encoder in training.

        Raises:
            ValueError: Unknown name, or shapes that contradict each other.
        """
        return build_pretrain_model(
            self.name,
            self.inputs,
            self.outputs,
            self.patch_size,
            self.image_size,
            self.num_global_tokens,
            drop_path_rate,
            self.decoder,
        )

    def to_json(self) -> str:
        """Only fields that differ from a row's defaults are written."""
        rows = {m.name: _row(m) for m in (*self.inputs, *self.outputs)}
        return json.dumps(
            {
                "name": self.name,
                "inputs": [m.name for m in self.inputs],
                "outputs": [m.name for m in self.outputs],
                "modalities": rows,
                "patch_size": self.patch_size,
                "image_size": self.image_size,
                "num_global_tokens": self.num_global_tokens,
                "decoder": dataclasses.asdict(self.decoder),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError: Not such a description.
        """
        try:
            raw = json.loads(text)
            table = make_table(raw["modalities"], base={})
            return cls(
                str(raw["name"]),
                tuple(select(table, raw["inputs"])),
                tuple(select(table, raw["outputs"])),
                int(raw["patch_size"]),
                int(raw["image_size"]),
                int(raw["num_global_tokens"]),
                DecoderOptions(**raw["decoder"]),
            )
        except (KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"not a description of a model ({err!r})") from err


def save_model(
    state: Mapping[str, Tensor],
    spec: ModelSpec,
    path: str | os.PathLike[str],
    *,
    half: bool = False,
) -> None:
    """Write weights with their description.

    Args:
        state: The model's state dict.
        spec: What it was built from.
        path: ``*.safetensors``.
        half: Store float16 instead of float32: half the size, three digits.
    """
    tensors = {
        key: value.half() if half and value.is_floating_point() else value
        for key, value in state.items()
    }
    save_state_dict(tensors, path, metadata={KEY: spec.to_json()})


def read_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """The description in a weight file.

    Raises:
        CheckpointError: Not a safetensors file, or one without a readable description.
    """
    text = read_metadata(path).get(KEY)
    if text is None:
        raise CheckpointError(
            f"{path} does not say which model it belongs to: build the model yourself and use "
            "multimae.weights.load_weights"
        )
    try:
        return ModelSpec.from_json(text)
    except ValueError as err:
        raise CheckpointError(f"{path}: {err}") from err


def load_model(path: str | os.PathLike[str]) -> MultiMAE:
    """The pre-trained model of a weight file, decoders included, float32, in evaluation mode.

    Raises:
        CheckpointError: Unreadable, without a description, or weights that do not fit it.
    """
    model = read_spec(path).build()
    state = extract_state_dict(read_checkpoint(path))
    load_weights(model, state, source=str(path), strict=True)
    return model.eval()


def _row(modality: Modality) -> dict[str, Any]:
    """Fields of a row that differ from the defaults; the name is its key."""
    return {
        f.name: getattr(modality, f.name)
        for f in dataclasses.fields(Modality)
        if f.name != "name" and getattr(modality, f.name) != f.default
    }
