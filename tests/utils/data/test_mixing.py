"""Training on several folders: shares, order, names, resume."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from multimae.specs.errors import UserError
from tests.support.image_folders import MODALITIES, message_of, save, write_sample
from utils.checkpoint.resume import _compare_identity
from utils.config.parse import ConfigError, parse_config, to_yaml
from utils.config.pretrain_options import PretrainConfig
from utils.data.mixing import Mix, MixedBatchSampler, SourceCounts
from utils.data.samplers import SampleKey
from utils.tasks.pretraining import build_train_set, run_modalities

SIZES = (3000, 500, 6500)
MIX = Mix(SIZES, (1.0, 2.0, 5.0), seed=3)


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    roots = [tmp_path / "indoor", tmp_path / "outdoor"]
    for n, root in enumerate(roots):
        for i in range(6 + 4 * n):
            write_sample(root, f"{'a' if i % 2 else 'b'}/{i:03d}", seed=10 * n + i)
    return roots


def config(tmp_path: Path, sources: object, *flags: str) -> PretrainConfig:
    path = tmp_path / "config.yaml"
    values = {"data_path": sources, "modalities": {"semseg": {"num_classes": 41}}}
    path.write_text(yaml.safe_dump(values))
    small = ("--input_size", "32", "--num_encoded_tokens", "4", "--batch_size", "2")
    return parse_config(PretrainConfig, ["--config", str(path), *small, *flags])


def sources_of(roots: list[Path], *weights: float) -> list[dict[str, object]]:
    return [{"path": str(r), "weight": w} for r, w in zip(roots, weights, strict=True)]


@pytest.mark.parametrize("epoch", [0, 1])
def test_shares_are_within_binomial_bounds(epoch: int) -> None:
    total = sum(SIZES)
    counts = torch.bincount(MIX.sources(epoch), minlength=3).tolist()
    for count, share in zip(counts, (1 / 8, 2 / 8, 5 / 8), strict=True):
        assert abs(count - total * share) < 4 * math.sqrt(total * share * (1 - share))


def test_samples_repeat_only_when_their_source_is_used_up() -> None:
    order, total = MIX.order(0), sum(SIZES)
    assert order.unique().numel() == total  # reruns have other keys, thus other augmentation
    sources = torch.bucketize(order % total, torch.tensor(SIZES).cumsum(0), right=True)
    assert torch.equal(sources, MIX.sources(0))
    small = order[sources == 1]
    assert small.numel() > 4 * 500
    reruns = [sorted((part % total).tolist()) for part in small[: 4 * 500].split(500)]
    assert reruns == [list(range(3000, 3500))] * 4
    assert [int(part[0]) // total for part in small[: 4 * 500].split(500)] == [0, 1, 2, 3]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert torch.equal(MIX.order(4), Mix(*MIX).order(4))
    assert not torch.equal(MIX.order(4), MIX.order(5))
    assert not torch.equal(MIX.order(4), MIX._replace(seed=4).order(4))


def batches(batch_size: int, rank: int, world_size: int, start: int = 0) -> list[list[SampleKey]]:
    sampler = MixedBatchSampler(sum(SIZES), batch_size, rank=rank, world_size=world_size)
    sampler.mix = MIX
    sampler.set_range(start, 300, 200)  # into the second epoch
    return list(sampler)


def test_ranks_share_global_batches_and_resume_within_an_epoch() -> None:
    whole = batches(8, 0, 1)
    pairs = zip(batches(4, 0, 2), batches(4, 1, 2), strict=True)
    assert [a + b for a, b in pairs] == whole
    assert batches(8, 0, 1, start=117) == whole[117:]


def test_a_single_folder_and_a_list(roots: list[Path], tmp_path: Path) -> None:
    cfg = config(tmp_path, sources_of(roots, 1, 3))
    assert yaml.safe_load(to_yaml(cfg))["data_path"] == sources_of(roots, 1, 3)
    inputs, outputs = run_modalities(cfg)
    dataset = build_train_set(cfg, list(dict.fromkeys((*inputs, *outputs))))
    assert len(dataset) == 16 and dataset.name(6).startswith("1/")
    first, again = dataset[SampleKey(0, 2)], dataset[SampleKey(0, 18)]
    assert first.name == again.name == dataset.name(2)
    assert not torch.equal(first.images["rgb"], again.images["rgb"])
    assert str(roots[1]) in str(dataset.folder.path(6, MODALITIES[0]))
    alone = config(tmp_path, str(roots[0]))
    assert alone.data.data_path == str(roots[0]) and alone.data.mix == []


def test_counts_by_source_are_those_of_the_batches(roots: list[Path], tmp_path: Path) -> None:
    cfg = config(tmp_path, sources_of(roots, 1, 3))
    dataset = build_train_set(cfg, run_modalities(cfg)[0])
    sampler = dataset.sampler(len(dataset), 3, seed=cfg.runtime.seed)
    sampler.set_range(0, 7, 5)  # 5 of 15 samples in an epoch of 16; two batches more
    counts = np.zeros(2)
    for key in (key for batch in sampler for key in batch):
        counts[int(dataset.name(key.index).partition("/")[0])] += 1
    found = SourceCounts(dataset, 3).run(torch.nn.Identity(), 7)
    assert found == {"samples/indoor": counts[0], "samples/outdoor": counts[1]}


def test_changed_shares_are_refused_on_resume(roots: list[Path], tmp_path: Path) -> None:
    mix = [config(tmp_path, sources_of(roots, *w)).data.mix for w in ((1, 3), (2, 6), (1, 2))]
    own = {"global_batch": None}
    assert not list(_compare_identity({"identity": {"mix": mix[0]}}, {**own, "mix": mix[1]}))
    (problem,) = _compare_identity({"identity": {"mix": mix[0]}}, {**own, "mix": mix[2]})
    assert "25.0%" in problem and "33.3%" in problem and str(roots[0]) in problem
    (problem,) = _compare_identity({"identity": {}}, {**own, "mix": mix[0]})
    assert "one folder" in problem
    assert not list(_compare_identity({"identity": {}}, {**own, "mix": []}))


@pytest.mark.parametrize(
    ("sources", "fact"),
    [
        ([], "list is empty"),
        ([{"path": "x"}], "entry 0"),
        ([{"path": "x", "weight": 0}], "weight 0"),
        ([{"path": "x", "weight": True}], "weight True"),
        ([{"path": "x", "weight": 1e308}, {"path": "y", "weight": 1e308}], "weight 1e+308"),
        ([{"path": "x", "weight": True, "wieght": 1}], "entry 0"),
        (["x"], "data_path"),
    ],
)
def test_invalid_lists(tmp_path: Path, sources: object, fact: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, sources)
    assert fact in str(caught.value)


def test_every_source_needs_every_modality_and_the_same_classes(
    roots: list[Path], tmp_path: Path
) -> None:
    cfg = config(tmp_path, sources_of(roots, 1, 1))
    (roots[1] / "depth").rename(roots[1] / "other")
    message = message_of(build_train_set, cfg, MODALITIES)
    assert str(roots[1] / "depth") in message
    for root, names in zip(roots, (["void", "wall"], ["wall", "void"]), strict=True):
        (root / "classes.json").write_text(json.dumps({"classes": names}))
    with pytest.raises(UserError, match="differ"):
        run_modalities(cfg)


def test_statistics_are_those_of_the_mix(roots: list[Path], tmp_path: Path) -> None:
    for root, value in zip(roots, (50, 200), strict=True):
        for path in sorted((root / "rgb").rglob("*.*")):
            noise = np.random.default_rng(0).integers(-20, 21, (40, 52, 3))
            save(path.with_suffix(".png"), (value + noise).astype(np.uint8))
            if path.suffix != ".png":
                path.unlink()
    means = []
    for weights in ((1, 3), (1, 1), (3, 1)):
        computed = "{semseg: {num_classes: 41}, rgb: {normalization: computed}}"
        cfg = config(tmp_path, sources_of(roots, *weights), "--modalities", computed)
        (rgb,) = (m for m in run_modalities(cfg)[0] if m.name == "rgb")
        means.append(255 * rgb.mean[0])
    assert means == pytest.approx([0.25 * 50 + 0.75 * 200, 125, 0.75 * 50 + 0.25 * 200], abs=1)
    folder = build_train_set(cfg, MODALITIES).folder
    assert [folder.part_of(i) for i in folder.spread(4)] == [0, 0, 0, 1]
    assert folder.times_per_epoch == (pytest.approx(0.75 * 16 / 6), pytest.approx(0.25 * 16 / 10))


def test_every_source_is_checked(roots: list[Path], tmp_path: Path) -> None:
    for path in (roots[1] / "depth").rglob("*.png"):
        path.write_bytes(b"no image")
    cfg = config(tmp_path, sources_of(roots, 1e6, 1))
    with pytest.raises(UserError, match=str(roots[1] / "depth")):
        build_train_set(cfg, MODALITIES)
