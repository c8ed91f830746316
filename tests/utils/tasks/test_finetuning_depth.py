"""Depth fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import run_finetuning_depth
from tests.support.image_folders import save
from tests.support.scenes import ON_CPU, write_scenes
from utils.config.depth_options import DepthConfig
from utils.data.batches import Batch
from utils.tasks.regression import Target

SCORES = ("delta_1", "delta_2", "delta_3", "rel", "srel", "rmse", "log10")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", 12)
    write_scenes(root / "val", 7, first_seed=100)
    return root


def arguments(data: Path, output_dir: Path | str, *more: str) -> list[str]:
    return [
        *("--data_path", str(data / "train"), "--eval_data_path", str(data / "val")),
        *("--output_dir", str(output_dir), "--model", "multivit_nano"),
        *("--input_size", "32", "--patch_size", "8", "--decoder_dim", "64"),
        *("--decoder_depth", "1", "--decoder_preds_per_patch", "4"),
        *("--batch_size", "4", "--epochs", "2", "--warmup_epochs", "0", "--num_workers", "0"),
        *("--lr", "1e-3", *ON_CPU, "--num_pictures", "2", "--log_every", "1"),
        *more,
    ]


def evaluations(output_dir: Path) -> list[dict[str, float]]:
    lines = (output_dir / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "eval"]


@pytest.mark.parametrize("head", ["dpt", "convnext"])
@pytest.mark.parametrize("loss", ["berhu", "l1", "l2"])
def test_every_head_and_loss(data: Path, tmp_path: Path, head: str, loss: str) -> None:
    run_finetuning_depth.main(
        arguments(data, tmp_path, "--output_adapter", head, "--loss", loss, "--color_augs")
    )
    first, last = evaluations(tmp_path)
    assert all(np.isfinite(last[f"eval/{name}"]) for name in SCORES)
    assert list((tmp_path / "pictures").glob("predictions_eval-*.png"))
    run_finetuning_depth.main(
        arguments(data, tmp_path, "--output_adapter", head, "--loss", loss, "--eval")
    )
    best = min(first["eval/rmse"], last["eval/rmse"])
    assert evaluations(tmp_path)[-1]["eval/rmse"] == pytest.approx(best, rel=1e-6)


def test_the_target_is_normalised_as_published() -> None:
    target = Target("depth", DepthConfig().data.target(), 1)
    raw = torch.tensor([[[[0, 2071, 10000]]]], dtype=torch.int32)
    expected = (raw.double() - 2070.7764) / 777.5723
    assert torch.allclose(target.prepare(raw).double(), expected, atol=1e-5)


def test_published_recipe_uses_float32() -> None:
    assert DepthConfig().precision == "fp32"
    assert (
        run_finetuning_depth.parse_config(DepthConfig, ["--precision", "auto"]).precision == "auto"
    )


def test_only_valid_pixels_count(data: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for path in (data / split / "depth").rglob("*.png"):
            mask = np.zeros((40, 40), np.uint8)
            mask[10:30] = 255
            save(data / split / "mask_valid" / path.relative_to(data / split / "depth"), mask)
    from utils.data.samplers import SampleKey
    from utils.distributed.world import World
    from utils.tasks.depth_estimation import DepthFinetuning

    cfg = run_finetuning_depth.parse_config(
        DepthConfig, arguments(data, "", "--use_mask_valid", "--max_train_images", "5")
    )
    job = DepthFinetuning(cfg, World(0, 1, torch.device("cpu")))
    task, train_set = job.build_task(), job.train_set()
    assert len(train_set) == 5
    sample = train_set[SampleKey(0, 0)]
    batch = Batch({k: v[None] for k, v in sample.images.items()}, [sample.name])
    valid = task.valid(batch)
    assert torch.equal(valid, batch.images["mask_valid"] == 255)
    assert 0.4 < valid.float().mean() < 0.6
