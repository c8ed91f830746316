"""Photos resized on the device equal those that the loader resizes, up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multimae.images.folders import MultiModalFolder
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality, make_table, select
from run_pretraining_multimae import main
from tests.support.image_folders import message_of, save
from tests.support.scenes import tiny_run, write_scenes
from tests.utils.tasks.test_pretraining import assert_same, rows, weights
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.data import device_crops
from utils.data.batches import BadSample, Batch
from utils.data.dataset import MultiModalDataset, build_loader
from utils.data.device_crops import DeviceCrops, UncutBatch
from utils.data.samplers import GlobalBatchSampler, SampleKey
from utils.data.transforms import TrainTransform

SPECS: dict[str, Any] = {
    "semseg": {"num_classes": 6, "stride": 4},
    "depth": {"normalization": "robust", "no_data": 0},
    "normals": {"kind": "image", "num_channels": 3, "max_value": 255, "hflip_negate": [0],
                "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
    "thermal": {"kind": "image", "num_channels": 1, "max_value": 255,
                "interpolation": "bilinear", "mean": [0.5], "std": [0.5]},
}  # fmt: skip
SIZES = ((40, 40), (75, 52), (33, 90), (120, 120), (64, 48), (41, 77), (32, 32), (90, 60))


def modalities(*names: str) -> list[Modality]:
    return select(make_table(SPECS), names or ("rgb", "thermal", "depth", "semseg", "normals"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of several sizes, the worst case of resampling; thermal has half the resolution."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i, (h, w) in enumerate(SIZES):
        save(folder / f"rgb/a/{i}.png", rng.choice([0, 40, 200, 255], (h, w, 3)).astype(np.uint8))
        small = ((h + 1) // 2, (w + 1) // 2)
        save(folder / f"thermal/a/{i}.png", rng.integers(0, 256, small).astype(np.uint8))
        depth = rng.integers(0, 3, (h, w)) * rng.integers(1, 60000, (h, w))
        save(folder / f"depth/a/{i}.png", depth.astype(np.uint16))
        save(folder / f"semseg/a/{i}.png", rng.integers(0, 6, (h, w)).astype(np.uint8))
        save(folder / f"normals/a/{i}.png", rng.integers(0, 256, (h, w, 3)).astype(np.uint8))
    return folder


def dataset(
    root: Path, *names: str, device: bool, allow_missing: bool = False
) -> MultiModalDataset:
    wanted = modalities(*names)
    transform: Any = TrainTransform(wanted, (32, 48), scale=(0.1, 1.0))
    if device:
        transform = DeviceCrops(transform)
    folder = MultiModalFolder(root, wanted, allow_missing=allow_missing)
    return MultiModalDataset(folder, transform, seed=5)


def batch_of(data: MultiModalDataset, keys: list[SampleKey]) -> Batch:
    return data.transform.collate(data.__getitems__(keys))


def test_batches_equal_the_loaders(root: Path) -> None:
    """Boxes larger and smaller than the output, flipped or not, in files of several sizes."""
    keys = [SampleKey(epoch, i) for epoch in range(12) for i in range(len(SIZES))]
    expected = batch_of(dataset(root, device=False), keys)
    uncut = batch_of(dataset(root, device=True), keys)
    assert isinstance(uncut, UncutBatch) and uncut.images["rgb/stored"].shape[-1] == 3
    found = uncut.to("cpu")
    assert type(found) is Batch and found.names == expected.names
    assert found.images.keys() == expected.images.keys()
    for name, image in expected.images.items():
        assert torch.equal(found.images[name], image), name


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("vflip", [False, True])
def test_flips_and_interpolations(interpolation: str, vflip: bool) -> None:
    from multimae.images.views import View, cut

    m = make_table({"x": {**SPECS["thermal"], "interpolation": interpolation}})["x"]
    image = np.random.default_rng(1).integers(0, 256, (50, 70), np.uint8)
    for flip in (False, True):
        view = View((100, 140), 3, 5, 61, 75, flip, vflip)  # between stored pixels
        stored, box = device_crops._boxed(image, view)
        resize = device_crops.Resize((40, 21), interpolation)
        found = resize(stored[None], torch.tensor([box], dtype=torch.float64))[0]
        assert torch.equal(found, cut(image, m, view, (40, 21)))


def test_a_sample_is_the_same_in_every_batch(root: Path) -> None:
    data = dataset(root, device=True)
    keys = [SampleKey(1, i) for i in range(len(SIZES))]
    together = batch_of(data, keys).to("cpu")
    for i, key in enumerate(keys):
        alone = batch_of(data, [key]).to("cpu")
        assert all(torch.equal(alone.images[n][0], x[i]) for n, x in together.images.items())


def test_autocast_does_not_change_values(root: Path) -> None:
    batch = batch_of(dataset(root, device=True), [SampleKey(0, i) for i in range(4)])
    with torch.autocast("cpu", torch.bfloat16):
        inside = batch.to("cpu")
    assert torch.equal(inside.images["rgb"], batch.to("cpu").images["rgb"])


def test_large_boxes_are_resized_by_the_loader(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_crops, "MAX_RATIO", 0)
    keys = [SampleKey(0, i) for i in range(len(SIZES))]
    uncut = batch_of(dataset(root, device=True), keys)
    assert uncut.images["rgb/stored"].shape[1:] == (32, 48, 3)
    expected = batch_of(dataset(root, device=False), keys)
    for name, image in uncut.to("cpu").images.items():
        assert torch.equal(image, expected.images[name]), name


@pytest.mark.parametrize("workers", [1])
def test_loader_processes_give_the_same_batches(root: Path, workers: int) -> None:
    data = dataset(root, device=True)
    sampler = GlobalBatchSampler(len(data), 4, seed=3)
    expected = [batch_of(data, keys).to("cpu").images for keys in sampler]
    loader = build_loader(data, sampler, num_workers=workers, pin_memory=False)
    iterator: Any = iter(loader)
    found = [batch.to("cpu").images for batch in iterator]
    iterator._shutdown_workers()
    assert len(found) == len(expected) == 2
    for a, b in zip(found, expected, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)


def test_samples_without_a_photo(root: Path, tmp_path: Path) -> None:
    for name in ("rgb", "depth"):
        for i in range(3):
            if (name, i) != ("rgb", 1):
                save(tmp_path / f"{name}/a/{i}.png", np.full((40, 40), 7, np.uint8))
    names, keys = ("rgb", "depth"), [SampleKey(0, i) for i in range(3)]
    found, expected = (
        batch_of(dataset(tmp_path, *names, device=device, allow_missing=True), keys).to("cpu")
        for device in (True, False)
    )
    assert torch.equal(found.present["rgb"], torch.tensor([True, False, True]))
    assert all(torch.equal(found.images[n], expected.images[n]) for n in names)


def test_a_batch_without_a_good_sample(root: Path) -> None:
    batch = dataset(root, device=True).transform.collate([BadSample("a/0", "cut off")]).to("cpu")
    assert not batch.images and batch.bad[0].name == "a/0" and batch.full_size == 1


def test_what_cannot_be_combined(root: Path) -> None:
    with pytest.raises(UserError, match="'semseg', 'depth'"):
        dataset(root, "semseg", "depth", device=True)
    message = message_of(
        parse_config, PretrainConfig, ["--device_crops", "--fast_decode", "--device", "mps"]
    )
    assert "fast_decode" in message and "float64" in message


def test_a_run_equals_one_cut_by_the_loader_also_resumed(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "train", 12)
    options = ("--batch_size", "2", "--update_freq", "2", "--peak_tflops", "1")
    main(tiny_run(scenes, tmp_path / "loader", *options))
    options = (*options, "--device_crops")
    main(tiny_run(scenes, tmp_path / "device", *options, "--max_steps", "4"))
    main(tiny_run(scenes, tmp_path / "device", *options, "--num_workers", "1"))
    assert_same(weights(tmp_path / "loader"), weights(tmp_path / "device"))
    assert all(row["mfu"] > 0 for row in rows(tmp_path / "device"))
