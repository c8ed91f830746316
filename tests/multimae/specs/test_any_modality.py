"""Modalities declared in YAML: example configs, statistics, ``no_data``."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import run_pretraining_multimae
from multimae.criterion import build_loss, per_sample_where
from multimae.images.folders import MultiModalFolder
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality, make_table
from multimae.weights.model_files import read_spec
from tests.support.image_folders import message_of
from tests.support.scenes import ON_CPU
from tools.common.staging import STAGING_FOLDER
from tools.make_modalities import main as make_modalities
from tools.report.run_log import read_log
from utils.data.statistics import Statistics, measure, resolve_statistics, statistics_mismatches

REPO = Path(__file__).parents[3]
CONFIGS = REPO / "cfgs/pretrain/rooms"
EXAMPLES = ("normals", "edges", "multispectral", "thermal")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example rooms with all further modalities; photos serve as normals."""
    root = tmp_path_factory.mktemp("any") / "rooms"
    shutil.copytree(REPO / "examples/rooms", root)
    make_modalities([str(root)])
    assert not (root / STAGING_FOLDER).exists()
    for path in (root / "rgb").rglob("*.jpg"):
        target = root / "normals" / path.relative_to(root / "rgb").with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
    return root


@pytest.mark.parametrize("name", [n for n in EXAMPLES if (CONFIGS / f"{n}.yaml").exists()])
def test_example_configs_train_from_yaml_alone(name: str, rooms: Path, tmp_path: Path) -> None:
    run_pretraining_multimae.main(
        [
            *("--config", str(CONFIGS / f"{name}.yaml"), "--data_path", str(rooms)),
            *("--eval_data_path", str(rooms), "--output_dir", str(tmp_path), "--epochs", "1"),
            *("--model", "pretrain_multimae_nano", "--decoder_dim", "32", "--warmup_steps", "0"),
            *("--decoder_num_heads", "4", "--batch_size", "4", *ON_CPU),
            *("--warmup_epochs", "0", "--input_size", "64", "--num_pictures", "1"),
            *("--num_encoded_tokens", "20"),
        ]
    )
    (row,) = [r for r in read_log(tmp_path) if r["kind"] == "eval"]
    assert math.isfinite(row[f"eval/{name}"]) and row[f"trivial/{name}"] > 0
    assert list((tmp_path / "pictures").glob("*.png"))
    modality = next(m for m in read_spec(tmp_path / "model.safetensors").inputs if m.name == name)
    assert modality.normalization in ("mean_std", "robust")
    declared = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["modalities"][name]
    if declared.get("normalization") == "computed":
        assert len(modality.mean) == modality.num_channels and modality.std != (1.0,)


def test_derived_modalities_have_the_right_values(rooms: Path) -> None:
    key = "kitchen/000038"
    bands = np.load(rooms / f"multispectral/{key}.npy")
    assert bands.shape == (160, 160, 6) and bands.dtype == np.uint16
    assert all(band.std() > 500 for band in np.moveaxis(bands, -1, 0))
    degrees = np.asarray(Image.open(rooms / f"thermal/{key}.tiff"))
    assert degrees.dtype == np.float32 and 10 < np.nanmin(degrees) < np.nanmax(degrees) < 50
    assert sum(
        np.isnan(np.asarray(Image.open(p))).any() for p in (rooms / "thermal").rglob("*.tiff")
    )
    outlines = np.asarray(Image.open(rooms / f"edges/{key}.png"))
    assert outlines.dtype == np.uint8 and outlines.max() == 255 and np.median(outlines) < 60


def test_incomplete_rooms_are_errors(tmp_path: Path) -> None:
    assert "no rooms" in message_of(make_modalities, [str(tmp_path)])
    for name in ("rgb", "depth"):
        shutil.copytree(REPO / f"examples/rooms/{name}", tmp_path / name)
    assert "semseg" in message_of(make_modalities, [str(tmp_path)])


def test_statistics_ignore_no_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(1, 200, (5, 8, 8, 2)).astype(np.uint8)
    images[:, :2] = 0
    (tmp_path / "a").mkdir()
    for i, image in enumerate(images):
        np.save(tmp_path / f"a/{i}.npy", image)
    row = Modality(
        "a", num_channels=2, normalization="computed", no_data=0, interpolation="nearest"
    )
    copy = Modality("b", num_channels=2, normalization="computed", source="a")
    filled, followed = resolve_statistics([row, copy], [tmp_path])
    known = images[:, 2:].reshape(-1, 2) / 255
    np.testing.assert_allclose(filled.mean, known.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(filled.std, known.std(axis=0), rtol=1e-6)
    assert filled.normalization == "mean_std" and followed.mean == filled.mean
    np.save(tmp_path / "a/0.npy", np.full((8, 8, 2), 7, np.uint8))
    for i in range(1, 5):
        np.save(tmp_path / f"a/{i}.npy", np.full((8, 8, 2), 7, np.uint8))
    with pytest.raises(UserError, match="constant"):
        resolve_statistics([row], [tmp_path])


def test_different_input_statistics_give_a_warning(tmp_path: Path) -> None:
    row = Modality("heat", num_channels=1, mean=(0.3,), std=(0.05,))
    assert statistics_mismatches({"heat": Statistics((0.42,), (0.05,), 9)}, [row], "w") == []
    (warning,) = statistics_mismatches(
        {"heat": Statistics((0.50,), (0.05,), 9)}, [row], "w.safetensors"
    )
    for part in ("'heat'", "0.5", "0.3", "4.0 standard deviations", "9 images", "w.safetensors"):
        assert part in warning
    (warning,) = statistics_mismatches({"heat": Statistics((0.3,), (0.0005,), 9)}, [row], "w")
    assert "spread x 0.01" in warning
    robust = make_table({"heat": {"normalization": "robust"}}, {"heat": row})["heat"]
    assert statistics_mismatches({"heat": Statistics((9.0,), (1.0,), 9)}, [robust], "w") == []
    (tmp_path / "heat").mkdir()
    values = np.random.default_rng(0).normal(0.9, 0.05, (32, 32)) * 255
    np.save(tmp_path / "heat/a.npy", values.clip(0, 255).astype(np.uint8))
    found = measure(MultiModalFolder(tmp_path, [row]), [row])
    assert statistics_mismatches(found, [row], "w")


@pytest.mark.parametrize("loss", ["mse", "l1", "cross_entropy"])
def test_no_data_pixels_do_not_affect_losses(loss: str) -> None:
    labels = loss == "cross_entropy"
    row = Modality(
        "a", "labels" if labels else "image", num_channels=2, num_classes=3, loss=loss,  # type: ignore
        interpolation="nearest",
    )  # fmt: skip
    criterion = build_loss(row, 4)
    torch.manual_seed(0)
    pred = torch.randn(2, 4, 16 * row.out_channels, requires_grad=True)
    target = torch.randint(0, 3, (2, 8, 8)) if labels else torch.randn(2, 2, 8, 8)
    valid = torch.rand(target.shape if labels else (2, 1, 8, 8)) > 0.3
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]])
    spoilt = target.masked_fill(~valid, 3 if labels else 1e4)
    values, counted = per_sample_where(criterion, pred, spoilt, valid, mask)
    assert counted.all()
    # By hand: the mean over the pixels with a value in counted tokens.
    whole = criterion.per_token(pred, target)
    everything, _ = per_sample_where(criterion, pred, target, torch.ones_like(valid), mask)
    torch.testing.assert_close(everything, (whole * mask).sum(1) / mask.sum(1))
    half = valid.clone()
    half[0] = False
    values, counted = per_sample_where(criterion, pred, spoilt, half, mask)
    assert counted.tolist() == [False, True] and values[0] == 0
    values.sum().backward()
    assert pred.grad is not None and pred.grad.isfinite().all() and pred.grad[0].eq(0).all()
    one = torch.zeros_like(valid)
    one[..., 0, 0] = True
    values, _ = per_sample_where(criterion, pred.detach(), target, one, mask)
    by_hand = pred.detach().view(2, 4, row.out_channels, 16)[:, 0, :, 0]
    if labels:
        wanted = torch.nn.functional.cross_entropy(by_hand, target[:, 0, 0], reduction="none")
    else:
        error = by_hand - target[:, :, 0, 0]
        wanted = (error.square() if loss == "mse" else error.abs()).mean(dim=1)
    torch.testing.assert_close(values, wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["max_value", "mean", "std", "loss_weight", "robust_unit"])
def test_numbers_that_are_not_finite_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be finite"):
        make_table({"depth": {field: value}})
