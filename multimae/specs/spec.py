"""The description of a model: what its weights cannot say.

It travels as JSON, in the header of a safetensors file and in a model folder's ``config.json``: the
registered size, the modality rows (with their normalisation statistics and class names), patch
and image size, decoders or heads, and how images are brought to the model's size.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from multimae.specs.heads import HeadOptions, HeadSpec, LinearOptions
from multimae.specs.modalities import Modality, make_table, select
from multimae.specs.registry import (
    MULTIVIT,
    SIZES,
    DecoderOptions,
    input_adapters,
    spatial_output_adapters,
    split_name,
)

ResizeMode = Literal["crop", "pad", "whole"]


@dataclass(frozen=True)
class ModelSpec:
    """What it takes to build a model and to use it on images as they are stored.

    Attributes:
        name: Registered name, e.g. ``pretrain_multimae_tiny`` or ``multivit_tiny``.
        inputs: Rows of the inputs, in sequence order.
        outputs: Rows of the pre-training targets.
        patch_size: Patch side where a row names none, in full-resolution pixels.
        image_size: Side of the images it was trained on, in pixels.
        num_global_tokens: Learned global tokens.
        decoder: Shape of the pre-training decoders.
        heads: Heads of a fine-tuned model.
        learnable_pos_emb: The position tables were trained.
        padding_class: Label inputs have one class more, where images are padded.
        resize_mode: How an image comes to the model's size. ``crop``: the largest centred square.
            ``pad``: the longest side fits, the rest is padded. ``whole``: the shortest side fits,
            the other keeps the proportions.
        crop_pct: Share of that square's sides that ``crop`` keeps.
    """

    name: str
    inputs: tuple[Modality, ...]
    outputs: tuple[Modality, ...] = ()
    patch_size: int = 16
    image_size: int = 224
    num_global_tokens: int = 1
    decoder: DecoderOptions = dataclasses.field(default_factory=DecoderOptions)
    heads: tuple[HeadSpec, ...] = ()
    learnable_pos_emb: bool = False
    padding_class: bool = False
    resize_mode: ResizeMode = "crop"
    crop_pct: float = 1.0

    @property
    def kind(self) -> str:
        """``pretrain_multimae`` or ``multivit``."""
        return split_name(self.name)[0]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Inputs and outputs, each once."""
        return tuple(dict.fromkeys((*self.inputs, *self.outputs)))

    def encoder(self) -> ModelSpec:
        """The same encoder as a MultiViT without outputs."""
        name = f"{MULTIVIT}_{split_name(self.name)[1]}"
        return dataclasses.replace(self, name=name, outputs=(), heads=())

    def keywords(self) -> dict[str, Any]:
        """Arguments of the model's constructor, freshly initialised adapters among them.

        Raises:
            ValueError: Unknown name, or shapes that contradict each other.
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
        """Of modality rows only the fields that differ from the defaults are written."""
        raw = {
            "name": self.name,
            "inputs": [m.name for m in self.inputs],
            "outputs": [m.name for m in self.outputs],
            "modalities": {m.name: _row(m) for m in self.modalities},
            **{_JSON_KEYS.get(name, name): getattr(self, name) for name in _PLAIN},
            "decoder": dataclasses.asdict(self.decoder),
            "heads": [_head_to_dict(head) for head in self.heads],
        }
        return json.dumps(raw, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError: Not such a description.
        """
        try:
            raw = json.loads(text)
            table = make_table(raw["modalities"], base={})
            spec = cls(
                name=str(raw["name"]),
                inputs=tuple(select(table, raw["inputs"])),
                outputs=tuple(select(table, raw["outputs"])),
                decoder=DecoderOptions(**raw["decoder"]),
                heads=tuple(_head_from_dict(head) for head in raw.get("heads", ())),
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
"""Keys in weight files, where they differ from the attribute's name."""


def _row(modality: Modality) -> dict[str, Any]:
    """Fields of a row that differ from the defaults; the name is its key."""
    return {
        f.name: getattr(modality, f.name)
        for f in dataclasses.fields(Modality)
        if f.name != "name" and getattr(modality, f.name) != f.default
    }


def _head_to_dict(head: HeadSpec) -> dict[str, Any]:
    options = dataclasses.asdict(head.options)
    if isinstance(head.options, LinearOptions):
        options["kind"] = "linear"
    return {
        "name": head.name,
        "target": {head.target.name: _row(head.target)},
        "channels": head.channels,
        "unit": head.unit,
        "options": options,
    }


def _head_from_dict(raw: Mapping[str, Any]) -> HeadSpec:
    (target,) = make_table(raw["target"], base={}).values()
    options = dict(raw["options"])
    if options.get("kind") == "linear":
        del options["kind"]
        shape: HeadOptions | LinearOptions = LinearOptions(**options)
    else:
        options["main_tasks"] = tuple(options["main_tasks"])
        shape = HeadOptions(**options)
    return HeadSpec(str(raw["name"]), target, int(raw["channels"]), shape, str(raw["unit"]))
