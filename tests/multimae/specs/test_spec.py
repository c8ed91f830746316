"""Model specs in weight files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import run_pretraining_multimae
from multimae import ModelSpec, MultiMAE
from multimae.specs.modalities import make_table, select
from multimae.specs.registry import DecoderOptions
from multimae.weights.files import CheckpointError, read_checkpoint
from multimae.weights.model_files import read_spec
from multimae.weights.pretrained import KEY, save_model
from tests.support.scenes import tiny_run, write_scenes
from tools.export_weights import main as export

TABLE = make_table(
    {
        "semseg": {"num_classes": 5, "class_names": ["void", "a", "b", "c", "d"]},
        "thermal": {"num_channels": 2, "mean": [0.1, 0.2], "std": [1.0, 2.0], "patch_size": 8},
    }
)
SPEC = ModelSpec(
    "pretrain_multimae_nano",
    tuple(select(TABLE, ["rgb", "thermal", "semseg"])),
    tuple(select(TABLE, ["thermal", "norm_rgb", "rgb"])),
    patch_size=16,
    image_size=64,
    num_global_tokens=2,
    decoder=DecoderOptions(32, 1, 4),
)


def test_spec_json_round_trip() -> None:
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC


def test_from_pretrained_loads_saved_models(tmp_path: Path) -> None:
    model = MultiMAE.from_spec(SPEC).eval()
    save_model(model.state_dict(), SPEC, tmp_path / "full.safetensors")
    save_model(model.state_dict(), SPEC, tmp_path / "half.safetensors", half=True)
    full = MultiMAE.from_pretrained(tmp_path / "full.safetensors")
    for key, value in model.state_dict().items():
        assert torch.equal(full.state_dict()[key], value)
    half = MultiMAE.from_pretrained(tmp_path / "half.safetensors")
    assert {p.dtype for p in half.parameters()} == {torch.float32} and not half.training
    x = {"rgb": torch.randn(2, 3, 64, 64), "thermal": torch.randn(2, 2, 64, 64)}
    (a, _), (b, _) = model(x, mask_inputs=False), half(x, mask_inputs=False)
    for name in ("thermal", "norm_rgb", "rgb"):
        assert torch.allclose(a[name], b[name], atol=2e-2)
    sizes = [(tmp_path / f"{kind}.safetensors").stat().st_size for kind in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]


def test_files_without_a_spec_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="does not say which model"):
        MultiMAE.from_pretrained(path)
    for text in ("{", "[]", '{"name": "x"}'):
        save_file({"a": torch.zeros(1)}, path, {KEY: text})
        with pytest.raises(CheckpointError, match=r"w\.safetensors"):
            MultiMAE.from_pretrained(path)
    save_file({"a": torch.zeros(1)}, path, {KEY: SPEC.to_json()})
    with pytest.raises(CheckpointError, match="does not fit"):
        MultiMAE.from_pretrained(path)
    path.write_bytes(b"no header")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        MultiMAE.from_pretrained(path)


def test_weights_of_a_run_load_and_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = write_scenes(tmp_path / "train", 4)
    run_pretraining_multimae.main(tiny_run(scenes, tmp_path / "run", "--epochs", "1"))
    source, target = tmp_path / "run/model.safetensors", tmp_path / "out/half.safetensors"
    assert [m.name for m in read_spec(source).outputs] == ["rgb", "depth", "semseg", "norm_rgb"]
    assert export([str(source), str(target)]) == 0
    assert read_spec(target) == read_spec(source)
    assert {v.dtype for v in read_checkpoint(target).values()} == {torch.float16}
    MultiMAE.from_pretrained(target)
    assert export([str(tmp_path / "none.safetensors"), str(target)]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_spec_may_name_a_published_label_set() -> None:
    def names(dataset: str, **fields: object) -> tuple[str, ...]:
        return make_table({"semseg": {"class_names": dataset, **fields}})["semseg"].class_names

    assert names("coco")[:2] == ("person", "bicycle")  # 133 classes, as the default modality
    assert names("ade20k", num_classes=150)[0] == "wall"
    assert names("NYU40", num_classes=41)[:2] == ("void", "wall")
    assert names("nyu40", num_classes=40)[0] == "wall"
    with pytest.raises(ValueError, match="'ade2k'; did you mean ade20k?"):
        names("ade2k", num_classes=150)
    with pytest.raises(ValueError, match="coco has 133 classes.*num_classes is 41"):
        names("coco", num_classes=41)


def test_names_of_published_data_sets_are_built_in() -> None:
    from multimae.specs.class_names import published_class_names

    names = published_class_names("NYU", 40)
    assert (len(names), names[0], names[39]) == (40, "wall", "otherprop")
    assert published_class_names("hypersim", 40) == names
    assert published_class_names("nyu", 13) == published_class_names("mine", 40) == ()
    ade = published_class_names("ade20k", 150)
    assert [ade[i] for i in (0, 8, 88, 149)] == ["wall", "windowpane", "booth", "flag"]
    coco = published_class_names("coco", 133)
    assert [coco[i] for i in (0, 79, 80, 132)] == ["person", "toothbrush", "banner", "rug-merged"]
    assert len(set(ade)) == 150 and len(set(coco)) == 133
    assert published_class_names(None, 150) == ade
    assert published_class_names(None, 7) == ()
