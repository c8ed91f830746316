"""Files in the published layouts are recognised by their content."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multimae import ModelSpec, MultiMAE
from multimae.specs.heads import HeadOptions, HeadSpec, LinearOptions
from multimae.specs.modalities import Modality, default_table
from multimae.specs.registry import DecoderOptions
from multimae.weights.convert import multimae_to_vit
from multimae.weights.files import CheckpointError

TABLE = default_table()
ROBUST = dataclasses.replace(TABLE["depth"], normalization="robust")
RGB, SEMSEG = TABLE["rgb"], TABLE["semseg"]
PRETRAINED = ModelSpec(
    "pretrain_multimae_nano", (RGB, TABLE["depth"], SEMSEG), (RGB, TABLE["depth"]),
    image_size=64, decoder=DecoderOptions(32, 1, 2),
)  # fmt: skip
ARGS = argparse.Namespace(
    decoder_num_heads=2, standardize_depth=False, in_domains="rgb-depth-semseg", input_size=64,
    patch_size=16, out_domains="rgb-depth",
)  # fmt: skip


def save(path: Path, state: dict[str, Tensor], **more: Any) -> Path:
    torch.save({"model": state, "epoch": 1599, **more}, path)
    return path


def same_outputs(one: nn.Module, other: nn.Module, names: tuple[str, ...]) -> bool:
    x = {"rgb": torch.randn(1, 3, 64, 64), "depth": torch.randn(1, 1, 64, 64)}
    x["semseg"] = torch.randint(0, 9, (1, 16, 16))
    x = {name: x[name] for name in names}
    more = {"mask_inputs": False} if one.kind == "pretrain_multimae" else {}  # type: ignore[union-attr]
    more |= {} if more else {"return_all_layers": "scratch" in "".join(one.state_dict())}
    with torch.no_grad():
        a, b = (m.eval()(x, **more) for m in (one, other))
    a, b = (v[0] if isinstance(v, tuple) else v for v in (a, b))
    return all(torch.equal(a[k], b[k]) for k in a)


def test_pretraining_args_set_heads_and_depth_normalisation(tmp_path: Path) -> None:
    original = MultiMAE.from_spec(PRETRAINED)
    path = save(tmp_path / "published.pth", original.state_dict(), args=ARGS)
    model = MultiMAE.from_pretrained(path)
    assert model.spec.decoder.num_heads == 2
    assert model.spec.inputs[1].normalization == "mean_std"
    assert same_outputs(model, original, ("rgb", "depth", "semseg"))
    without = MultiMAE.from_pretrained(save(tmp_path / "bare.pth", original.state_dict()))
    assert without.spec.decoder.num_heads == 8 and without.spec.inputs[1].normalization == "robust"


def head(name: str, target: Modality, channels: int, options: Any) -> HeadSpec:
    return HeadSpec(name, target, channels, options)


LABELS = Modality("semseg", "labels", num_classes=7, interpolation="nearest",
                  loss="cross_entropy", plot="labels")  # fmt: skip
DEPTH = Modality("depth", num_channels=1, plot="scalar")
NORMAL = Modality("normal", num_channels=3, plot="normals")
BOTH = ("rgb", "depth")
FINETUNED = {
    "segmenter": ([head("semseg", LABELS, 7, HeadOptions("segmenter", ("rgb",), 48, 2,
                                                         num_heads=12))], True),
    "convnext": ([head("semseg", LABELS, 7, HeadOptions("convnext", BOTH, 128, 4, 16))], True),
    "convnext_depth": ([head("depth", DEPTH, 1, HeadOptions("convnext", ("rgb",), 256, 4, 64))],
                       False),
    "dpt_depth": ([head("depth", DEPTH, 1, HeadOptions("dpt", ("rgb",)))], False),
    "dpt_labels": ([head("semseg", LABELS, 7, HeadOptions("dpt", BOTH))], True),
    "taskonomy": ([head("normal", NORMAL, 3, HeadOptions("dpt", ("rgb",))),
                   head("depth", DEPTH, 1, HeadOptions("dpt", ("rgb",)))], False),
    "linear": ([head("cls", LABELS, 7, LinearOptions())], False),
}  # fmt: skip


@pytest.mark.parametrize("kind", FINETUNED)
def test_finetunings_are_recognized_by_their_state_dict(kind: str, tmp_path: Path) -> None:
    heads, padded = FINETUNED[kind]
    original = MultiMAE.from_spec(
        ModelSpec("multivit_nano", (RGB, ROBUST, SEMSEG), image_size=64, heads=tuple(heads),
                  padding_class=padded)
    )  # fmt: skip
    args = argparse.Namespace(standardize_depth=True, in_domains="rgb-depth-semseg")
    if kind == "taskonomy":
        args.out_domains = "normal-depth_zbuffer"
    model = MultiMAE.from_pretrained(
        save(tmp_path / "checkpoint-best.pth", original.state_dict(), args=args)
    )
    assert same_outputs(model, original, ("rgb", "depth", "semseg"))
    assert model.spec.resize_mode == ("pad" if padded else "crop")
    assert model.spec.inputs[2].num_classes == 133
    assert model.spec.inputs[2].class_names[132] == "rug-merged"
    depth = next((h for h in model.spec.heads if h.name == "depth"), None)
    assert depth is None or (depth.unit, depth.scale) == (
        ("", 1.0) if kind == "taskonomy" else ("m", 0.001)
    )


def test_args_set_class_names_and_void(tmp_path: Path) -> None:
    labels = dataclasses.replace(LABELS, num_classes=151)
    spec = ModelSpec(
        "multivit_nano", (RGB,), image_size=64, padding_class=True,
        heads=(head("semseg", labels, 151, HeadOptions("convnext", ("rgb",), 128, 1, 16)),),
    )  # fmt: skip
    state = MultiMAE.from_spec(spec).state_dict()
    args = argparse.Namespace(in_domains="rgb", dataset_name="ade20k", seg_use_void_label=True)
    found = MultiMAE.from_pretrained(save(tmp_path / "ade.pth", state, args=args)).spec.heads[0]
    assert (found.channels, found.target.num_classes) == (151, 150)
    assert found.target.class_names[149] == "flag"


def to_hugging_face(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    out = {}
    fixed = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    }
    layers = {
        "attn.proj": "attention.output.dense", "norm1": "layernorm_before",
        "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }  # fmt: skip
    for key, value in state.items():
        if key in fixed:
            out[prefix + fixed[key]] = value
            continue
        _, i, rest = key.split(".", 2)
        layer, kind = rest.rsplit(".", 1)
        if layer == "attn.qkv":
            for part, v in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"{prefix}encoder.layer.{i}.attention.attention.{part}.{kind}"] = v
        else:
            out[f"{prefix}encoder.layer.{i}.{layers[layer]}.{kind}"] = value
    return out


@pytest.mark.parametrize("layout", ["multivit", "timm", "mae", "hf", "hf_encoder"])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_mae_in_every_layout(layout: str, wrapper: str, tmp_path: Path) -> None:
    original = MultiMAE.from_spec(ModelSpec("multivit_nano", (RGB,), image_size=64))
    state = original.state_dict()
    if layout != "multivit":
        state = dict(multimae_to_vit(state).state)
    if layout == "mae":
        state |= {"norm.weight": torch.ones(64), "mask_token": torch.zeros(1, 1, 32),
                  "decoder_embed.weight": torch.zeros(32, 64)}  # fmt: skip
    elif layout.startswith("hf"):
        state = to_hugging_face(state, "vit." if layout == "hf" else "")
        state |= {} if layout == "hf_encoder" else {"decoder.mask_token": torch.zeros(1, 1, 32)}
    path = save(tmp_path / "mae.pth", {wrapper + k: v for k, v in state.items()})
    model = MultiMAE.from_pretrained(path)
    loaded, expected = model.state_dict(), original.state_dict()
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[k], expected[k]) for k in expected)


def test_missing_absolute_path_is_not_a_hub_id(tmp_path: Path) -> None:
    for name in ("gone", "gone.pth"):
        with pytest.raises(CheckpointError, match=f"{tmp_path}/{name}.* no such file"):
            MultiMAE.from_pretrained(tmp_path / name)
