"""Frozen features: what is loaded, what is extracted, and the tool; see also test_probing.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from multimae.specs.build import build_multivit, build_pretrain_model
from multimae.specs.modalities import make_table, select
from multimae.weights.load import save_state_dict
from tests.support.image_folders import message_of, save
from tests.support.scenes import NUM_CLASSES, ON_CPU, write_scene, write_scenes
from tests.support.states import random_timm
from tools import probe
from tools.probing.features import extract, feature_loader, labelled_folder, load_frozen
from tools.probing.probe_options import FeatureOptions, ProbeDataOptions, ProbeModelOptions
from utils.data.sets.class_folders import ClassEvalTransform, find_classes
from utils.training.precision import choose_precision

TABLE = make_table({"semseg": {"num_classes": NUM_CLASSES}})
NAMES = ("rgb", "depth", "semseg")
SEMSEG = ("--modalities", f"{{semseg: {{num_classes: {NUM_CLASSES}}}}}")
FP32 = choose_precision("fp32", torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", 14)
    write_scenes(root / "val", 7, first_seed=100)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a pre-training model with decoders; every parameter random."""
    torch.manual_seed(0)
    rows = select(TABLE, NAMES)
    model = build_pretrain_model("pretrain_multimae_nano", rows, rows, 8, 32, num_global_tokens=2)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.endswith("pos_emb"):
                parameter.normal_(mean=float(".norm" in key and "weight" in key), std=0.1)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_state_dict(model.state_dict(), path)
    return path


def arguments(data: Path, *more: str) -> list[str]:
    return [
        *("--data_path", str(data / "train"), "--eval_data_path", str(data / "val")),
        *("--input_size", "32", "--patch_size", "8", "--batch_size", "4", "--num_workers", "0"),
        *(*ON_CPU, *SEMSEG, *more),
    ]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    """The JSON of the last line."""
    probe.main(argv)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


# --- features


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_every_image_counts_once_and_batches_do_not_matter(
    data: Path, weights: Path, batch_size: int
) -> None:
    rows = select(TABLE, ["rgb", "depth"])
    options = ProbeModelOptions(weights=str(weights), input_size=32, patch_size=8)
    frozen = load_frozen(options, rows)
    assert frozen.name == "multivit_nano" and frozen.model.num_global_tokens == 2
    assert not any(p.requires_grad for p in frozen.model.parameters())
    folder = labelled_folder(str(data / "val/rgb"), rows)
    loader = feature_loader(folder, options, ProbeDataOptions(num_workers=0), batch_size=batch_size)
    dataset, classes = loader.dataset, find_classes(folder)
    assert isinstance(dataset.transform, ClassEvalTransform)  # type: ignore[attr-defined]
    features = extract(frozen.model, loader, rows, classes, FeatureOptions(), FP32)
    assert features.x.shape == (7, 64) and features.y.tolist() == [0, 0, 0, 0, 1, 1, 1]
    one_by_one = feature_loader(folder, options, ProbeDataOptions(num_workers=0), batch_size=1)
    alone = extract(frozen.model, one_by_one, rows, classes, FeatureOptions(), FP32)
    assert torch.allclose(features.x, alone.x, atol=1e-5)


# --- the tool


@pytest.mark.parametrize("domains", ["rgb", "depth", "semseg-rgb", "rgb-depth-semseg"])
def test_any_subset_of_inputs(
    data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], domains: str
) -> None:
    target = tmp_path / "new/probe.json"
    more = ("--weights", str(weights), "--in_domains", domains, "--pool", "mean_global")
    argv = arguments(data, *more, "--layers", "2", "--output_json", str(target))
    result = run(capsys, *argv)
    assert result == json.loads(target.read_text()) == run(capsys, *argv)
    counts = [result[key] for key in ("model", "dim", "classes", "train_images", "eval_images")]
    assert counts == ["multivit_nano", 4 * 64, 2, 14, 7]
    assert result["chance"] == pytest.approx(100 * 4 / 7)
    knn, linear = result["knn"], result["linear"]
    assert isinstance(knn, dict) and isinstance(linear, dict)
    assert list(knn) == ["1", "5", "14"] and set(knn["1"]) == {"acc1"}
    assert 0 <= linear["acc1"] <= 100 and "acc5" not in linear


def test_depth_that_tells_the_classes(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, first in (("train", 0), ("val", 50)):
        for i in range(12):
            key = f"{'ab'[i % 2]}/{i:02d}"
            write_scene(tmp_path / split, key, first + i)
            ramp = np.linspace(1000, 60000, 40)[:: 1 if i % 2 else -1]
            save(tmp_path / split / f"depth/{key}.png", np.tile(ramp, (40, 1)).astype(np.uint16))
    argv = arguments(tmp_path, "--weights", str(weights), "--in_domains", "depth")
    result = run(capsys, *argv, "--standardize_depth")
    linear, knn = result["linear"], result["knn"]
    assert isinstance(linear, dict) and isinstance(knn, dict)
    assert linear["acc1"] == 100 and knn["1"]["acc1"] == 100 and result["chance"] == 50


def test_random_baseline(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = arguments(data, "--random", "--model", "multivit_nano", "--in_domains", "rgb-depth")
    result = run(capsys, *argv)
    assert result["weights"] == "random" and result == run(capsys, *argv)


def test_vit_weights(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vit.pth"
    torch.save(random_timm("vit_tiny_patch16_224").state_dict(), path)
    argv = arguments(data, "--weights", str(path), "--patch_size", "16")
    result = run(capsys, *argv)
    assert result["model"] == "multivit_tiny" and result["dim"] == 192
    message = message_of(probe.main, [*argv, "--in_domains", "rgb-depth"])
    assert "no weights for depth" in message and "inputs rgb (3x16x16 patches)" in message


def test_incomplete_weights_are_refused(data: Path, weights: Path, tmp_path: Path) -> None:
    def refusal(*more: str) -> str:
        return message_of(probe.main, arguments(data, "--weights", str(weights), *more))

    assert "not a file" in refusal("--weights", str(tmp_path / "none.pth"))
    other_patch = refusal("--patch_size", "16")
    assert "input_adapters.rgb.proj.weight" in other_patch and "--patch_size" in other_patch
    other_classes = refusal("--in_domains", "semseg", "--modalities", "{semseg: {num_classes: 9}}")
    assert "input_adapters.semseg.class_emb.weight (file 5x64, model 9x64)" in other_classes
    assert "--layers 3: the encoder has 2 blocks" in refusal("--layers", "3")
    rows = select(TABLE, ["rgb"])
    shallow = build_multivit("multivit_nano", rows, {}, 8, 32, 0).state_dict()
    shallow = {k: v for k, v in shallow.items() if not k.startswith("encoder.1.")}
    save_state_dict(shallow, tmp_path / "one.safetensors")
    one = ("--weights", str(tmp_path / "one.safetensors"))
    unknown = refusal(*one)
    assert "no registered model has this size" in unknown and "depth 1" in unknown
    assert "encoder.1.norm1.weight: not in the file" in refusal(*one, "--model", "multivit_nano")
    nothing = tmp_path / "nothing.safetensors"
    save_state_dict({"weight": torch.zeros(2)}, nothing)
    assert "no weights for rgb" in refusal("--weights", str(nothing))


def test_all_bad_options_at_once(data: Path, tmp_path: Path) -> None:
    message = message_of(
        probe.main,
        ["--data_path", "x", "--knn_k", "0", "--pool", "max", "--in_domains", "rgb-dept",
         "--input_size", "30", "--model", "multivit_larg"],
    )  # fmt: skip
    for part in (
        *("eval_data_path: give", "--knn_k: (0,)", "--pool", "did you mean depth", "--input_size"),
        *("did you mean multivit_large", "weights: give pre-trained weights, or --random"),
    ):
        assert part in message
    assert message.startswith("7 problems")
    both = message_of(probe.main, arguments(data, "--weights", "w", "--random"))
    assert "--random: leaves no use" in both
    (tmp_path / "file").write_text("")
    blocked = ("--random", "--output_json", str(tmp_path / "file/x.json"))
    assert "cannot be written" in message_of(probe.main, arguments(data, *blocked))


def test_classes_have_to_agree(data: Path, weights: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "val", "c/1", 0)
    write_scene(tmp_path / "train", "a/1", 0)
    argv = arguments(data, "--weights", str(weights))
    other = message_of(probe.main, [*argv, "--eval_data_path", str(tmp_path / "val")])
    assert "classes that the training set does not have" in other
    assert "one class, 'a'" in message_of(
        probe.main, [*argv, "--data_path", str(tmp_path / "train")]
    )
