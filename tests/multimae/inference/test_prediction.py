"""predict() with the weights of a fine-tuning run matches the run's evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import run_finetuning_cls
import run_finetuning_depth
import run_finetuning_semseg
import run_finetuning_taskonomy
from multimae import MultiMAE, MultiViT, read_spec
from multimae.images.inputs import prepare_padded
from multimae.images.preprocess import prepare
from multimae.images.readers import read
from tests.support.scenes import write_scene, write_scenes
from tests.utils.tasks.test_finetuning_cls import arguments as cls_run
from tests.utils.tasks.test_finetuning_depth import arguments as depth_run
from tests.utils.tasks.test_finetuning_semseg import arguments as semseg_run
from tests.utils.tasks.test_finetuning_taskonomy import arguments as taskonomy_run
from tests.utils.tasks.test_finetuning_taskonomy import data as taskonomy_data  # noqa: F401  (a fixture)
from utils.data.dense_transforms import INSIDE, SegEvalTransform
from utils.data.sets.class_folders import ClassEvalTransform
from utils.data.transforms import EvalTransform

ONE_EPOCH = ("--epochs", "1", "--num_pictures", "0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", 4)
    write_scene(root / "val", "a/000", 100)
    write_scene(root / "val", "b/001", 101)
    return root


def wide_photo(data: Path, folder: Path) -> dict[str, Any]:
    """Two thirds of a scene: 40 wide, 26 high."""
    paths = {"rgb": data / "val/rgb/a/000.jpg", "depth": data / "val/depth/a/000.png"}
    out = {}
    for name, path in paths.items():
        out[name] = folder / f"{name}.png"
        Image.open(path).crop((0, 5, 40, 31)).save(out[name])
    return out


def test_predict_returns_sorted_classes(data: Path, tmp_path: Path) -> None:
    run_finetuning_cls.main(cls_run(data, tmp_path, *ONE_EPOCH))
    model = MultiMAE.from_pretrained(tmp_path / "model.safetensors")
    path = data / "val/rgb/a/000.jpg"
    guess: Any = model.predict(path)["cls"]
    (row,) = model.spec.inputs
    x = ClassEvalTransform([row], 32)({"rgb": read(path, row)})
    with torch.inference_mode():
        logits = model(prepare({"rgb": x["rgb"][None]}, [row]))["cls"][0]
    assert guess.names == tuple("ab"[i] for i in guess.ids) and guess.name == guess.names[0]
    assert guess.ids[0] == logits.argmax() and guess.probabilities[0] >= guess.probabilities[1]
    assert np.allclose(guess.probabilities, logits.softmax(0)[guess.ids].numpy(), atol=1e-6)


def test_a_model_built_in_inference_mode_encodes(data: Path) -> None:
    weights, photo = "weights/multimae-tiny_rooms.safetensors", data / "val/rgb/a/000.jpg"
    with torch.inference_mode():
        model = MultiMAE.from_pretrained(weights)
        built_inside = model.encode(photo, pool="mean")
    model = MultiMAE.from_pretrained(weights)
    with torch.inference_mode():
        assert torch.equal(model.encode(photo, pool="mean"), built_inside)
    model.encode(photo, pool="mean").sum().backward()  # no cached tensor is an inference tensor
    assert model.encoder[0].norm1.weight.grad is not None


@pytest.mark.parametrize("head", ["convnext", "segmenter", "dpt"])
def test_predict_returns_label_maps(data: Path, tmp_path: Path, head: str) -> None:
    options = ("--in_domains", "rgb-depth", "--standardize_depth", "--output_adapter", head)
    run_finetuning_semseg.main(semseg_run(data, tmp_path, *ONE_EPOCH, *options))
    path = tmp_path / "model.safetensors"
    model = MultiMAE.from_pretrained(path)
    assert type(model) is MultiViT and read_spec(path).resize_mode == "pad"
    images = wide_photo(data, tmp_path)
    guess: Any = model.predict(images)["semseg"]
    rows = model.spec.inputs
    stored = SegEvalTransform(rows, 32)({m.name: read(images[m.name], m) for m in rows})
    batch = {name: value[None] for name, value in stored.items()}
    with torch.inference_mode():
        x = prepare_padded(batch, rows, batch.pop(INSIDE))
        logits = model(x, return_all_layers=head == "dpt")["semseg"][0]
    assert guess.logits.shape == (4, 21, 32)
    assert torch.allclose(guess.logits, logits[:, :21], atol=1e-6)
    assert guess.ids.shape == (26, 40) and guess.picture().shape == (26, 40, 3)
    assert set(guess.ids.flatten().tolist()) <= set(range(4))
    assert abs(sum(guess.shares().values()) - 1) < 1e-9


def test_depth_in_metres(data: Path, tmp_path: Path) -> None:
    run_finetuning_depth.main(depth_run(data, tmp_path, *ONE_EPOCH))
    model = MultiMAE.from_pretrained(tmp_path / "model.safetensors")
    square = data / "val/rgb/a/000.jpg"
    wide_rgb = wide_photo(data, tmp_path)["rgb"]
    one, two = model.predict([{"rgb": square}, {"rgb": wide_rgb}])
    guess: Any = one["depth"]
    (row,) = model.spec.inputs
    x = EvalTransform([row], 32)({"rgb": read(square, row)})
    with torch.inference_mode():
        x = prepare({"rgb": x["rgb"][None]}, [row])
        output = model(x, return_all_layers=True)["depth"][0]
    assert torch.allclose(guess.normalized, output, atol=1e-6)
    head = model.spec.heads[0].target
    assert guess.unit == "m" and guess.values.shape == (40, 40)
    mean = (output.mean() * head.std[0] + head.mean[0]) * head.max_value * 0.001
    assert abs(guess.values.mean() - mean) < 0.05 * abs(mean)
    wide: Any = two["depth"]
    x = EvalTransform([row], 32)({"rgb": read(wide_rgb, row)})
    with torch.inference_mode():
        output = model(prepare({"rgb": x["rgb"][None]}, [row]), return_all_layers=True)["depth"][0]
    assert torch.allclose(wide.normalized, output, atol=1e-6)  # the crop that evaluation scores
    assert wide.values.shape == (26, 26)


def test_predict_runs_all_heads(taskonomy_data: Path, tmp_path: Path) -> None:  # noqa: F811
    options = ("--out_domains", "normal-reshading", "--num_pictures", "0")
    run_finetuning_taskonomy.main(taskonomy_run(taskonomy_data, tmp_path, *options))
    model = MultiMAE.from_pretrained(tmp_path / "model.safetensors")
    photo = Image.fromarray(np.full((64, 64, 3), 120, np.uint8))
    wide: Any = model.predict(Image.new("RGB", (96, 64)))
    assert wide["normal"].values.shape == (64, 64, 3)  # as evaluation crops
    guess: Any = model.predict(photo)
    assert set(guess) == {"normal", "reshading"}
    assert guess["normal"].values.shape == (64, 64, 3) and guess["normal"].unit == ""
    assert guess["normal"].picture().shape == (32, 32, 3)
    with pytest.raises(ValueError, match="not tensors"):
        model.predict({"rgb": torch.zeros(1, 3, 32, 32)})  # type: ignore[dict-item]
