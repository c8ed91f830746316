"""Infer the spec of a checkpoint without one from shapes and the ``args`` of published files.

Covers the published pre-trainings and fine-tunings and models shaped like them: inputs of the
default modality table, pre-training decoders, and linear, Segmenter, ConvNeXt and DPT heads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from multimae.specs.class_names import published_class_names
from multimae.specs.heads import HeadOptions, HeadSpec, LinearOptions
from multimae.specs.modalities import UNIT_16_BIT, Modality, Plot, default_table
from multimae.specs.registry import MULTIVIT, PRETRAIN, SIZES, DecoderOptions, encoder_shape
from multimae.specs.spec import ModelSpec

_INPUTS, _OUTPUTS = "input_adapters", "output_adapters"
_PUBLISHED_HEADS, _SEGMENTER_HEADS = 8, 12
_NYU_MEAN, _NYU_STD = 2070.7764, 777.5723


def guess_spec(state: Mapping[str, Tensor], args: Mapping[str, Any] | None = None) -> ModelSpec:
    """Infer the spec of a model from its state dict.

    Args:
        state: Weights with MultiMAE's names.
        args: Options of the run that wrote the file, if stored: attention heads of the decoders,
            depth standardization, modalities of the heads. Defaults are those of the published
            models: 8 heads, depth standardized per sample (in pre-training after division by
            2^16).

    Raises:
        ValueError: Not the weights of a MultiMAE of known size and modalities.
    """
    args = args or {}
    if "global_tokens" not in state:
        raise ValueError("they are not those of a MultiMAE")
    num_global, width = state["global_tokens"].shape[1:]
    names, outputs = _names(state, _INPUTS), _names(state, _OUTPUTS)
    if not names:
        raise ValueError("they have no input adapters")
    pretrained = not outputs or f"{_OUTPUTS}.{outputs[0]}.mask_token" in state
    blocks = _count(state, "encoder")
    size = find_size(blocks, width)
    if size is None:
        raise ValueError(f"no registered size has {blocks} blocks of width {width}")
    heads = [] if pretrained else [_head(name, state, names, args) for name in outputs]
    padded = any(h.target.is_labels and isinstance(h.options, HeadOptions) for h in heads)
    inputs = [_modality(name, state, args, padded, finetuned=not pretrained) for name in names]
    first = inputs[0]
    patch = _patch_kernel(first.name, state) * first.stride
    rows, columns = state[f"{_INPUTS}.{first.name}.pos_emb"].shape[-2:]
    return ModelSpec(
        name=f"{PRETRAIN if pretrained else MULTIVIT}_{size}",
        inputs=tuple(inputs),
        outputs=tuple(_modality(name, state, args) for name in outputs) if pretrained else (),
        patch_size=patch,
        image_size=(rows * patch, columns * patch),
        num_global_tokens=num_global,
        decoder=_decoder(state, outputs[0], args) if pretrained and outputs else DecoderOptions(),
        heads=tuple(heads),
        padding_class=padded,
        resize_mode="pad" if padded else "crop",
    )


def find_size(blocks: int, width: int | None) -> str | None:
    """Registered size with this depth and width, or ``None``."""
    return next((s for s in SIZES if encoder_shape(f"{MULTIVIT}_{s}") == (blocks, width)), None)


def _names(state: Mapping[str, Tensor], group: str) -> list[str]:
    """Adapter names of a group, in file order."""
    return list(dict.fromkeys(k.split(".")[1] for k in state if k.startswith(f"{group}.")))


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of blocks of a transformer."""
    start = prefix.count(".") + 1
    return len({k.split(".")[start] for k in state if k.startswith(f"{prefix}.")})


def _modality(
    name: str,
    state: Mapping[str, Tensor],
    args: Mapping[str, Any],
    padded: bool = False,
    finetuned: bool = False,
) -> Modality:
    """Default modality with the classes and normalisation of the weights."""
    table = default_table()
    if name not in table:
        raise ValueError(f"'{name}' is no modality of the default table ({', '.join(table)})")
    modality = table[name]
    embedding = state.get(f"{_INPUTS}.{name}.class_emb.weight")
    if embedding is not None:
        classes, dim = embedding.shape[0] - int(padded), embedding.shape[1]
        names = published_class_names(None, classes)
        return dataclasses.replace(
            modality, num_classes=classes, dim_class_emb=dim, class_names=names
        )
    if modality.plot == "scalar":
        robust = bool(args.get("standardize_depth", True))
        if not robust:
            return dataclasses.replace(modality, normalization="mean_std")
        unit = modality.robust_unit if finetuned else UNIT_16_BIT
        return dataclasses.replace(modality, normalization="robust", robust_unit=unit)
    if modality.plot == "rgb" and not args.get("imagenet_default_mean_and_std", True):
        return dataclasses.replace(modality, mean=(0.5,), std=(0.5,))
    return modality


def _patch_kernel(name: str, state: Mapping[str, Tensor]) -> int:
    """Patch side at the modality's resolution."""
    return state[f"{_INPUTS}.{name}.proj.weight"].shape[-1]


def _decoder(state: Mapping[str, Tensor], name: str, args: Mapping[str, Any]) -> DecoderOptions:
    prefix = f"{_OUTPUTS}.{name}"
    dim = state[f"{prefix}.mask_token"].shape[-1]
    return DecoderOptions(
        dim=dim,
        depth=_count(state, f"{prefix}.decoder_transformer"),
        num_heads=int(args.get("decoder_num_heads", math.gcd(_PUBLISHED_HEADS, dim))),
        use_task_queries=bool(args.get("decoder_use_task_queries", True)),
        use_xattn=f"{prefix}.decoder.q.weight" in state,
    )


def _head(
    name: str, state: Mapping[str, Tensor], inputs: Sequence[str], args: Mapping[str, Any]
) -> HeadSpec:
    """Infer a head from the names and shapes of its weights."""
    prefix = f"{_OUTPUTS}.{name}."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if set(own) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}:
        classes = len(own["head.bias"])
        pooling = bool(args.get("use_mean_pooling", True))
        return HeadSpec(name, _labels(name, classes), classes, LinearOptions(pooling))
    width = state["global_tokens"].shape[-1]
    if "cls_emb" in own:
        joined = own["proj_dec.weight"].shape[1] // width
        channels, dim = own["cls_emb"].shape[1:]
        heads = _SEGMENTER_HEADS if dim % _SEGMENTER_HEADS == 0 else None
        options = HeadOptions(
            "segmenter", _main_tasks(joined, inputs, args), dim, _count(own, "blocks"),
            num_heads=heads,
        )  # fmt: skip
    elif "blocks.0.dwconv.weight" in own or "final_layer.weight" in own:
        dim, joined = own["proj_dec.weight"].shape[0], own["proj_dec.weight"].shape[1] // width
        channels, cell = own["final_layer.weight"].shape[:2]
        options = HeadOptions(
            "convnext", _main_tasks(joined, inputs, args), dim, _count(own, "blocks"), dim // cell,
            str(args.get("decoder_interpolate_mode", "bilinear")),  # type: ignore[arg-type]
        )  # fmt: skip
    elif "head.0.weight" in own:
        last = max((k for k in own if k.startswith("head.")), key=lambda k: int(k.split(".")[1]))
        channels = len(own[last])
        joined = own["act_postprocess.0.0.weight"].shape[1] // width
        options = HeadOptions("dpt", _main_tasks(joined, inputs, args))
    else:
        raise ValueError(f"output '{name}' is no decoder or head of this library")
    labels = name == "semseg" or options.kind == "segmenter" or _is_label_dpt(own)
    if labels:
        classes = channels - int(bool(args.get("seg_use_void_label", False)))
        names = published_class_names(args.get("dataset_name"), classes)
        target = dataclasses.replace(_labels(name, classes), class_names=names)
        return HeadSpec(name, target, channels, options)
    nyu = name == "depth" and "out_domains" not in args  # Taskonomy's z-buffer has that name, too
    target = _nyu_depth() if nyu else _values(name, channels)
    return HeadSpec(name, target, channels, options, "mm" if nyu else "")


def _is_label_dpt(own: Mapping[str, Tensor]) -> bool:
    """Whether a DPT head ends in class logits: its first convolution has no bias."""
    return "head.0.weight" in own and "head.0.bias" not in own


def _main_tasks(count: int, inputs: Sequence[str], args: Mapping[str, Any]) -> tuple[str, ...]:
    """Modalities whose tokens a head reads: ``args``, else rgb or all inputs."""
    named = args.get("decoder_main_tasks", ())
    names = tuple(named.split("-")) if isinstance(named, str) else tuple(named or ())
    if len(names) == count:
        return names
    if count == len(inputs):
        return tuple(inputs)
    first = [n for n in inputs if n == "rgb"] + [n for n in inputs if n != "rgb"]
    return tuple(first[:count])


def _labels(name: str, classes: int) -> Modality:
    return Modality(
        name, "labels", num_classes=max(2, classes), interpolation="nearest",
        loss="cross_entropy", plot="labels",
    )  # fmt: skip


def _values(name: str, channels: int) -> Modality:
    """Target of a Taskonomy head, with values from 0 to 1."""
    plot: Plot = "rgb" if name == "rgb" else "normals" if channels == 3 else "scalar"
    return Modality(name, num_channels=channels, plot=plot)


def _nyu_depth() -> Modality:
    return Modality(
        "depth", num_channels=1, max_value=65535.0, mean=(_NYU_MEAN / 65535,),
        std=(_NYU_STD / 65535,), interpolation="nearest", plot="scalar",
    )  # fmt: skip
