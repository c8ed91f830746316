"""torch.export and ONNX: outputs equal the model's for any batch and image size."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multimae import ModelSpec, MultiMAE, MultiViT, make_table
from multimae.inference.export import (
    export_onnx,
    export_program,
    make_export_spec,
    onnx_differences,
)
from multimae.nn.tokens import sincos_2d
from multimae.specs.heads import HeadOptions, HeadSpec, LinearOptions
from multimae.specs.modalities import select
from multimae.specs.registry import DecoderOptions
from multimae.weights.pretrained import save_model
from tests.support.golden import assert_close
from tools import export_onnx as command

SHIPPED = Path(__file__).parents[3] / "weights" / "multimae-tiny_rooms.safetensors"
NAMES = ("a", "b", "c", "d", "e")
TABLE = make_table({"semseg": {"num_classes": 5, "class_names": NAMES}})
ROWS = tuple(select(TABLE, ["rgb", "depth", "semseg"]))
RGB, DEPTH, LABELS = ROWS
HEADS = (
    HeadSpec("kind", LABELS, 5, LinearOptions()),
    HeadSpec("semseg", LABELS, 5, HeadOptions("segmenter", ("rgb", "depth"), 64, 1)),
    HeadSpec("rgb", RGB, 3, HeadOptions("convnext", ("rgb",), 128, 1)),
    HeadSpec("depth", DEPTH, 1, HeadOptions("dpt", ("rgb", "depth"))),
)
# Other sizes than the example's, one patch alone, and the position tables' own size.
CASES = ((1, 3, 3), (3, 5, 2), (1, 1, 1), (2, 4, 4))


@pytest.fixture(scope="module")
def pretrained() -> MultiMAE:
    outputs = select(TABLE, ["semseg", "norm_rgb"])
    spec = ModelSpec(
        "pretrain_multimae_nano", ROWS, tuple(outputs), image_size=64, num_global_tokens=2,
        decoder=DecoderOptions(32, 1, 4),
    )  # fmt: skip
    return randomized(MultiMAE.from_spec(spec))


@pytest.fixture(scope="module")
def finetuned() -> MultiMAE:
    return randomized(
        MultiViT.from_spec(ModelSpec("multivit_nano", (RGB, DEPTH), image_size=64, heads=HEADS))
    )


def randomized(model: MultiMAE) -> MultiMAE:
    """Randomises biases, norms and positions too: a lost one changes the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def images(batch: int, height: int, width: int) -> dict[str, torch.Tensor]:
    return {
        "rgb": torch.randn(batch, 3, height, width),
        "depth": torch.randn(batch, 1, height, width),
        "semseg": torch.randint(5, (batch, height // 4, width // 4)),
    }


def assert_equal_to_torch(
    model: MultiMAE, path: Path, outputs: set[str], cases: Any = CASES
) -> None:
    differences = onnx_differences(model, path, cases)
    assert len(differences) == len(cases)
    for size, found in differences.items():
        assert set(found) == outputs
        assert all(difference <= 1e-4 for difference in found.values()), (size, found)


def shapes(path: Path) -> dict[str, list[int | str]]:
    graph = onnx.load(path).graph
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


# --- ONNX


@pytest.mark.long
def test_exported_heads_match_the_model(finetuned: MultiMAE, tmp_path: Path) -> None:
    export_onnx(finetuned, path := tmp_path / "heads.onnx")
    heads = {f"predicted_{head.name}" for head in HEADS}
    assert_equal_to_torch(finetuned, path, heads)
    size = ["batch", 3, "16*rows", "16*columns"]
    assert shapes(path)["rgb"] == shapes(path)["predicted_rgb"] == size
    assert [p.name for p in tmp_path.iterdir()] == ["heads.onnx"]


@pytest.mark.long
@pytest.mark.parametrize("learned", [False, True])
def test_models_of_images_that_are_not_square(learned: bool, tmp_path: Path) -> None:
    spec = ModelSpec(
        "multivit_nano", (RGB, DEPTH), image_size=(48, 96), heads=HEADS, learnable_pos_emb=learned
    )
    model = randomized(MultiViT.from_spec(spec))
    save_model(model.state_dict(), spec, tmp_path / "model.safetensors")
    path = tmp_path / "heads.onnx"
    assert command.main([str(tmp_path / "model.safetensors"), str(path)]) == 0
    heads = {f"predicted_{head.name}" for head in HEADS}
    # The size of the position tables, that of the transposed image, and others.
    assert_equal_to_torch(model, path, heads, ((2, 3, 6), (1, 6, 3), (3, 5, 2)))
    program = export_program(model, "encoder").module()
    x = {k: v for k, v in images(2, 48, 96).items() if k != "semseg"}
    with torch.no_grad():
        assert_close(program(x)["tokens"], make_export_spec(model, "encoder").module(x)["tokens"])


@pytest.mark.long
def test_reconstruction_and_metadata(pretrained: MultiMAE, tmp_path: Path) -> None:
    export_onnx(pretrained, path := tmp_path / "reconstruct.onnx", "reconstruct")
    outputs = {f"predicted_{m.name}" for m in pretrained.spec.outputs}
    assert_equal_to_torch(pretrained, path, outputs)
    assert shapes(path)["ids_keep"] == ["batch", "visible"]
    assert shapes(path)["semseg"] == ["batch", "4*rows", "4*columns"]
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    spec = ModelSpec.from_json(metadata["multimae"])
    assert spec == pretrained.spec and spec.inputs[2].class_names == NAMES
    assert json.loads(metadata["multimae_export"]) == {
        "what": "reconstruct",
        "inputs": ["rgb", "depth", "semseg"],
        "pool": None,
        "height_multiple": 16,
        "width_multiple": 16,
    }


@pytest.mark.long
def test_command_exports_the_shipped_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "encoder.onnx"
    assert command.main([str(SHIPPED), str(path), "--inputs", "rgb"]) == 0
    printed = capsys.readouterr().out
    assert "3 x 80 x 32: tokens " in printed and "pretrain_multimae_tiny, 2" in printed
    model = MultiMAE.from_pretrained(SHIPPED)
    assert_equal_to_torch(model, path, {"tokens"}, ((1, 8, 8), (4, 2, 10)))
    assert set(shapes(path)) == {"rgb", "tokens"}


# --- torch.export


def test_export_of_selected_inputs_with_pooling(pretrained: MultiMAE) -> None:
    program = export_program(pretrained, inputs=["rgb"], pool="mean_global")
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    run = torch.export.load(file).module()
    for batch, height, width in ((1, 64, 64), (4, 32, 112)):
        x = {"rgb": images(batch, height, width)["rgb"]}
        with torch.no_grad():
            expected = pretrained.encode(x, pool="mean_global")
            assert_close(run(x)["features"], expected)


def test_exported_reconstruction_equals_forward(pretrained: MultiMAE) -> None:
    run = make_export_spec(pretrained, "reconstruct").module  # what is exported
    for batch, height, width, share in ((1, 64, 64, 0.2), (3, 32, 80, 0.5)):
        x = images(batch, height, width)
        with torch.no_grad():
            patches = height * width // 256
            visible = torch.rand(batch, 3 * patches).argsort(dim=1) < share * 3 * patches
            masks = dict(zip(x, (~visible).long().split(patches, dim=1), strict=True))
            expected, _ = pretrained(x, task_masks=masks)
            ids_keep = visible.nonzero()[:, 1].view(batch, -1).flip(1)  # in any order
            actual = run(x, ids_keep)
        assert set(actual) == {f"predicted_{name}" for name in expected}
        for name in expected:
            assert_close(actual[f"predicted_{name}"], expected[name])


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(14, 14), (7, 5), (1, 3)])
def test_interpolating_pos_emb_to_the_same_size_is_the_identity(
    mode: str, size: tuple[int, int]
) -> None:
    """Why an export may always interpolate."""
    table = sincos_2d(*size, 64)
    assert torch.equal(F.interpolate(table, size, mode=mode, align_corners=False), table)


# --- what cannot be exported


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"what": "predict"}, "no heads to predict with"),
        ({"what": "decode"}, "what must be one of encoder, predict, reconstruct; got 'decode'"),
        ({"what": "reconstruct", "pool": "mean"}, "pool is for the encoder"),
        ({"pool": "max"}, "pool is for the encoder, one of mean, global, mean_global"),
        ({"inputs": ["rgb", "sound"]}, "inputs must be among rgb, depth, semseg; got rgb, sound"),
        ({"inputs": []}, "got none"),
    ],
)
def test_invalid_options_are_errors(
    pretrained: MultiMAE, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        export_program(pretrained, **options)


def test_unsupported_models_are_errors(
    finetuned: MultiMAE, pretrained: MultiMAE, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no pre-training decoders"):
        export_program(finetuned, "reconstruct")
    with pytest.raises(ValueError, match="main_tasks depth are not in the input"):
        export_program(finetuned, inputs=["rgb"])
    training = MultiViT.from_spec(pretrained.spec)
    with pytest.raises(ValueError, match=r"training mode: call model\.eval\(\)"):
        export_program(training)
    adapters: dict[str, nn.Module] = dict(pretrained.input_adapters.items())
    nameless = MultiViT(adapters, None, dim_tokens=64, depth=1, num_heads=4).eval()
    with pytest.raises(ValueError, match="knows no modalities"):
        export_onnx(nameless, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([str(SHIPPED), "a.onnx", "--inputs", "rgb-sound"], "got rgb, sound"),
        ([str(SHIPPED), "a.onnx", "--what", "predict"], "no heads to predict with"),
        (["none.safetensors", "a.onnx"], "none.safetensors"),
    ],
)
def test_command_on_bad_input(
    flags: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert command.main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line
    assert not list(tmp_path.iterdir())


def test_command_names_missing_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "multimae.inference.export.find_spec",
        lambda name: None if name == "onnxruntime" else find_spec(name),
    )
    assert command.main([str(SHIPPED), "a.onnx"]) == 2
    assert "onnxruntime cannot be imported: pip install 'multimae[export]'" in (
        capsys.readouterr().err
    )
    with pytest.raises(SystemExit, match="2"):
        command.main([str(SHIPPED), "a.pt"])


def test_command_fails_if_outputs_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "multimae.inference.export.export_onnx", lambda model, path, *_, **__: path.touch()
    )
    monkeypatch.setattr(
        "multimae.inference.export.onnx_differences",
        lambda *_: {"1 x 16 x 16": {"x": float("nan")}},
    )
    assert command.main([str(SHIPPED), str(tmp_path / "a.onnx")]) == 1
    assert "1e-03" in capsys.readouterr().err
