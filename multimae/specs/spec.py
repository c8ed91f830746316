"""Model specs: all that is needed to build a model and to preprocess its inputs.

A spec is stored as JSON in the header of a safetensors file and in a model folder's
``config.json``: registered name, modalities (with normalisation statistics and class names), patch
and image size, decoders or heads, and resize mode.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from multimae.nn.tokens import Sides, plain_sides
from multimae.specs.modalities import Modality, changed_fields, make_table, select
from multimae.specs.registry import (
    MULTIVIT,
    SIZES,
    DecoderOptions,
    input_adapters,
    spatial_output_adapters,
    split_name,
)

if TYPE_CHECKING:
    from multimae.specs.heads import HeadSpec

ResizeMode = Literal["crop", "pad", "whole"]


@dataclass(frozen=True)
class ModelSpec:
    """Spec of a model and of the preprocessing of stored images.

    Attributes:
        name: Registered name, e.g. ``pretrain_multimae_tiny`` or ``multivit_tiny``.
        inputs: Input modalities, in sequence order.
        outputs: Pre-training targets.
        patch_size: Patch side of modalities without one, in full-resolution pixels.
        image_size: Side of the training images, in pixels, or (height, width).
        num_global_tokens: Number of learned global tokens.
        decoder: Options of the pre-training decoders.
        heads: Heads of a fine-tuned model.
        learnable_pos_emb: Whether the position tables were trained.
        padding_class: Whether label inputs have an extra class for padded pixels.
        resize_mode: How images are resized to ``image_size``. ``crop``: centre crop. ``pad``: fit
            the longer side, pad the rest. ``whole``: fit the shorter side, keep the aspect ratio.
        crop_pct: Crop percentage of ``crop``, as a fraction of the shorter side.
    """

    name: str
    inputs: tuple[Modality, ...]
    outputs: tuple[Modality, ...] = ()
    patch_size: int = 16
    image_size: Sides = 224
    num_global_tokens: int = 1
    decoder: DecoderOptions = dataclasses.field(default_factory=DecoderOptions)
    heads: tuple[HeadSpec, ...] = ()
    learnable_pos_emb: bool = False
    padding_class: bool = False
    resize_mode: ResizeMode = "crop"
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        """Write a square as one side."""
        object.__setattr__(self, "image_size", plain_sides(self.image_size))

    @property
    def kind(self) -> str:
        """``pretrain_multimae`` or ``multivit``."""
        return split_name(self.name)[0]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Inputs and outputs without duplicates."""
        return tuple(dict.fromkeys((*self.inputs, *self.outputs)))

    def encoder(self) -> ModelSpec:
        """Spec of the encoder alone, as a MultiViT without outputs."""
        name = f"{MULTIVIT}_{split_name(self.name)[1]}"
        return dataclasses.replace(self, name=name, outputs=(), heads=())

    def keywords(self) -> dict[str, Any]:
        """Arguments of the model's constructor, with newly initialised adapters.

        Raises:
            ValueError: Unknown name, or contradictory shapes.
        """
        dims = SIZES[split_name(self.name)[1]]
        outputs: dict[str, nn.Module] = {
            **spatial_output_adapters(
                self.outputs, self.inputs, self.patch_size, self.image_size, self.decoder
            ),
            **{head.name: head.build(self.name, self.patch_size) for head in self.heads},
        }
        return {
            "input_adapters": input_adapters(
                self.inputs,
                self.patch_size,
                self.image_size,
                self.learnable_pos_emb,
                self.padding_class,
            ),
            "output_adapters": outputs,
            "num_global_tokens": self.num_global_tokens,
            **dims,
        }

    def to_json(self, indent: int | None = None) -> str:
        """Serialise; of modalities only non-default fields."""
        raw = {
            "name": self.name,
            "inputs": [m.name for m in self.inputs],
            "outputs": [m.name for m in self.outputs],
            "modalities": {m.name: changed_fields(m) for m in self.modalities},
            **{_JSON_KEYS.get(name, name): getattr(self, name) for name in _PLAIN},
            "decoder": dataclasses.asdict(self.decoder),
            "heads": [head.to_dict() for head in self.heads],
        }
        return json.dumps(raw, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError: Not a valid spec.
        """
        try:
            raw = json.loads(text)
            table = make_table(raw["modalities"], base={})
            spec = cls(
                name=str(raw["name"]),
                inputs=tuple(select(table, raw["inputs"])),
                outputs=tuple(select(table, raw["outputs"])),
                decoder=DecoderOptions(**raw["decoder"]),
                heads=_heads_from(raw.get("heads", ())),
                **{n: raw[key] for n in _PLAIN if (key := _JSON_KEYS.get(n, n)) in raw},
            )
        except (KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"not a description of a model ({err!r})") from err
        split_name(spec.name)
        return spec


_PLAIN = (
    "patch_size",
    "image_size",
    "num_global_tokens",
    "learnable_pos_emb",
    "padding_class",
    "resize_mode",
    "crop_pct",
)
_JSON_KEYS = {"resize_mode": "framing", "crop_pct": "crop_share"}
"""Keys in weight files that differ from the attribute names."""


def _heads_from(raw: Sequence[Any]) -> tuple[HeadSpec, ...]:
    if not raw:
        return ()
    from multimae.specs.heads import HeadSpec  # pre-training has none

    return tuple(map(HeadSpec.from_dict, raw))
