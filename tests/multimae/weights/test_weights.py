"""Weights: reading and writing files, loading into models with a report, strict errors."""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed

from multimae.input_adapters import SemSegInputAdapter
from multimae.multimae import MultiViT
from multimae.output_adapters.dpt import DPTOutputAdapter
from multimae.output_adapters.linear import LinearOutputAdapter
from multimae.specs.registry import SIZES
from multimae.weights.convert import vit_to_multimae
from multimae.weights.files import (
    CheckpointError,
    extract_state_dict,
    read_checkpoint,
    save_state_dict,
)
from multimae.weights.load import load_weights
from tests.support.golden import assert_close, golden
from tests.support.states import MINI, assert_same, multivit, random_timm

# --- loading -------------------------------------------------------------------------------------


def test_position_tables_are_resized_bicubically() -> None:
    vit = random_timm("vit_tiny_patch16_224")
    model = multivit(384, **SIZES["tiny"])
    state = vit_to_multimae(vit.state_dict()).state
    report = load_weights(model, state, source="timm")
    key = "input_adapters.rgb.pos_emb"
    assert report.resized == (key,)
    table = resample_abs_pos_embed(
        vit.pos_embed, [24, 24], num_prefix_tokens=1, antialias=False, verbose=False
    )[:, 1:]
    assert_close(model.state_dict()[key].flatten(2).transpose(1, 2), table)


def test_report_names_every_key() -> None:
    source, target = multivit(), multivit(heads={"cls": LinearOutputAdapter(7)})
    state = source.state_dict()
    state["output_adapters.cls.head.weight"] = torch.zeros(9, 24)
    state["other"] = torch.zeros(3)
    report = load_weights(target, state, source="file.pth")
    assert set(report.loaded) == set(source.state_dict())
    assert report.unused == ("other",)
    assert set(report.new) == {
        f"output_adapters.cls.{k}" for k in ("norm.weight", "norm.bias", "head.bias")
    }
    (mismatch,) = report.mismatched
    assert (mismatch.file_shape, mismatch.model_shape) == ((9, 24), (7, 24))
    assert_same(
        {k: target.state_dict()[k] for k in state if k in report.loaded}, source.state_dict()
    )
    summary = report.summary()
    assert "file.pth: 28 tensors loaded" in summary
    assert "1 unused (not in the model): other" in summary
    assert "output_adapters.cls.head.weight (file 9x24, model 7x24)" in summary


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    target, state = multivit(), dict(multivit().state_dict())
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    state["unused"] = torch.full((2,), value)
    load_weights(target, before | {"unused": state["unused"]}, source="file.pth")
    state["encoder.0.mlp.fc1.bias"] = torch.full_like(state["encoder.0.mlp.fc1.bias"], value)
    with pytest.raises(CheckpointError, match=r"file.pth: 1 of .* encoder.0.mlp.fc1.bias"):
        load_weights(target, state, source="file.pth")
    assert_same(target.state_dict(), before)


def test_class_embedding_gets_a_padding_class() -> None:
    def model(padding: int | None) -> MultiViT:
        adapter = SemSegInputAdapter(10, 4, 16, image_size=48, emb_padding_idx=padding)
        return MultiViT({"semseg": adapter}, None, **MINI)

    target, state = model(10), model(None).state_dict()
    key = "input_adapters.semseg.class_emb.weight"
    with torch.no_grad():
        target.get_parameter(key).fill_(5.0)
    assert load_weights(target, state, source="x").resized == (key,)
    assert torch.equal(target.state_dict()[key], F.pad(state[key], (0, 0, 0, 1)))


OTHERS = {
    "wider": (lambda: multivit(dim_tokens=36).state_dict(), "width 36, depth 2"),
    "deeper": (lambda: multivit(depth=4).state_dict(), "24 unknown to the model: encoder.2"),
    "shallower": (lambda: multivit(depth=1).state_dict(), "12 missing in the file: encoder.1"),
    "larger input": (lambda: multivit(96).state_dict(), "1 with another size: input_adapters.rgb"),
    "vit": (lambda: golden("convert")["vit"], "a ViT of width 24, depth 2; tools/vit2multimae"),
    "resnet": (lambda: {"conv1.weight": torch.zeros(3)}, "not a MultiMAE: 1 tensors, conv1"),
    "more inputs": (lambda: golden("convert")["multimae"], r"semseg \(11 classes\)"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_strict_lists_differences(other: str) -> None:
    make, message = OTHERS[other]
    model = multivit()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as err:
        load_weights(model, make(), source="old.pth", strict=True)
    text = str(err.value)
    assert text.startswith("checkpoint old.pth does not fit this model.")
    assert "model: width 24, depth 2, inputs rgb (3x16x16 patches), outputs none" in text
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("other", ["wider", "vit", "resnet"])
def test_nothing_loaded_is_an_error(other: str) -> None:
    state = {**OTHERS[other][0](), "output_adapters.cls.head.bias": torch.zeros(7)}
    model = multivit(heads={"cls": LinearOutputAdapter(7)})
    with pytest.raises(CheckpointError, match="does not fit this model"):
        load_weights(model, state, source="x")


# --- files ---------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_malicious_pickle_is_refused(tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"model": multivit().state_dict(), "args": Malicious(marker)}, path)
    with pytest.raises(CheckpointError, match="could run code.*mkdir.*re-save the weights") as err:
        read_checkpoint(path)
    assert str(path) in str(err.value)
    assert not marker.exists()


def test_published_layout_with_its_arguments(tmp_path: Path) -> None:
    state = multivit().state_dict()
    args = argparse.Namespace(lr=1e-4, in_domains=["rgb"], model=None)
    torch.save({"model": state, "epoch": 3, "args": args}, tmp_path / "c.pth")
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    assert checkpoint["args"] == args
    assert_same(extract_state_dict(checkpoint), state)


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"PK\x03\x04cut", b"\x80\x02}q"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_not_a_checkpoint(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_bytes_raise_checkpoint_error(tmp_path: Path, suffix: str) -> None:
    path, rng = tmp_path / f"x{suffix}", random.Random(0)
    state = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    if suffix == ".safetensors":
        save_state_dict(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=False)
    intact, refused = path.read_bytes(), 0
    for _ in range(200):
        damaged = bytearray(intact)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    save_state_dict(multivit().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="may be truncated"):
        read_checkpoint(path)


def test_missing_file_and_foreign_content(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        read_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"did you mean .*list\.pth"):
        read_checkpoint(tmp_path / "lists.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")


def test_weights_are_found_under_known_keys() -> None:
    state = {"a": torch.zeros(1), "b.c": torch.ones(1)}
    for checkpoint in (
        state,
        {"model": state, "optimizer": {}},
        {"module": state},
        {"model": {f"module.{k}": v for k, v in state.items()}},
    ):
        assert_same(extract_state_dict(checkpoint), state)
    assert_same(extract_state_dict({"ema": state, "model": {}}, keys=("ema",)), state)
    for bad in ({}, {"epoch": 1, "t": torch.zeros(1)}, {"model": {}}):
        with pytest.raises(CheckpointError, match="no weights in the checkpoint"):
            extract_state_dict(bad)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_save_clones_shared_tensors(tmp_path: Path, name: str) -> None:
    """DPT lists its layers twice."""
    head = DPTOutputAdapter(1, hooks=[0, 0, 1, 1], layer_dims=[4, 4, 4, 4], feature_dim=8)
    model = multivit(heads={"depth": head})
    save_state_dict(model.state_dict(), tmp_path / name)
    state = extract_state_dict(read_checkpoint(tmp_path / name))
    assert_same(state, model.state_dict())
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    (tmp_path / "by_open").touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / "by_open").stat().st_mode


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    old = {"a": torch.arange(3.0)}
    save_state_dict(old, path)

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state_dict({"a": torch.zeros(3)}, path)
    assert_same(load_file(path), old)
    assert list(tmp_path.iterdir()) == [path]
