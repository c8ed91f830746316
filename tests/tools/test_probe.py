"""Frozen features, the classifiers on them, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from multimae import ModelSpec, MultiMAE, MultiViT
from multimae.inference.neighbours import Labelled, knn_accuracy, knn_votes
from multimae.specs.modalities import make_table, select
from multimae.weights.files import save_state_dict
from tests.support.image_folders import message_of, save
from tests.support.scenes import NUM_CLASSES, ON_CPU, write_scene, write_scenes
from tests.support.states import random_timm
from tools import probe
from tools.probing.classifiers import (
    fit_logistic,
    linear_probe,
    majority_accuracy,
    standardize,
    stratified_split,
)
from tools.probing.frozen_features import (
    extract,
    feature_loader,
    labelled_folder,
    load_frozen,
)
from tools.probing.probe_options import FeatureOptions, ProbeDataOptions, ProbeModelOptions
from utils.checkpoint.start_weights import StartWeights
from utils.data.sets.class_folders import ClassEvalTransform, find_classes
from utils.training.stepper import choose_precision

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
    rows = tuple(select(TABLE, NAMES))
    model = MultiMAE.from_spec(
        ModelSpec(
            "pretrain_multimae_nano", rows, rows, patch_size=8, image_size=32, num_global_tokens=2
        )
    )
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
    frozen = load_frozen(options, rows, StartWeights(options.start, "--weights"))
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


def test_depth_separates_the_classes(
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
    assert "patch_size: the weights' 8, yours 16" in other_patch
    other_classes = refusal("--in_domains", "semseg", "--modalities", "{semseg: {num_classes: 9}}")
    assert "semseg: num_classes: the weights' 5, yours 9" in other_classes
    assert "--layers 3: the encoder has 2 blocks" in refusal("--layers", "3")
    rows = tuple(select(TABLE, ["rgb"]))
    spec = ModelSpec("multivit_nano", rows, patch_size=8, image_size=32, num_global_tokens=0)
    shallow = MultiViT.from_spec(spec).state_dict()
    shallow = {k: v for k, v in shallow.items() if not k.startswith("encoder.1.")}
    save_state_dict(shallow, tmp_path / "one.safetensors")
    one = ("--weights", str(tmp_path / "one.safetensors"))
    unknown = refusal(*one)
    assert "no registered model has this size" in unknown and "depth 1" in unknown
    assert "encoder.1.norm1.weight: not in the file" in refusal(*one, "--model", "multivit_nano")
    nothing = tmp_path / "nothing.safetensors"
    save_state_dict({"weight": torch.zeros(2)}, nothing)
    assert "no weights for rgb" in refusal("--weights", str(nothing))


def test_all_invalid_options_are_reported_at_once(data: Path, tmp_path: Path) -> None:
    message = message_of(
        probe.main,
        ["--data_path", "x", "--knn_k", "0", "--pool", "max", "--in_domains", "rgb-dept",
         "--input_size", "30", "--model", "multivit_larg"],
    )  # fmt: skip
    for part in (
        *(
            "eval_data_path: the folder of test images",
            "--knn_k: (0,)",
            "--pool",
            "did you mean depth",
            "--input_size",
        ),
        *("did you mean multivit_large", "weights: set pre-trained weights, or --random"),
    ):
        assert part in message
    assert message.startswith("7 problems")
    both = message_of(probe.main, arguments(data, "--weights", "w", "--random"))
    assert "--random: cannot be combined" in both
    (tmp_path / "file").write_text("")
    blocked = ("--random", "--output_json", str(tmp_path / "file/x.json"))
    assert "cannot be written" in message_of(probe.main, arguments(data, *blocked))


def test_different_classes_are_errors(data: Path, weights: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "val", "c/1", 0)
    write_scene(tmp_path / "train", "a/1", 0)
    argv = arguments(data, "--weights", str(weights))
    other = message_of(probe.main, [*argv, "--eval_data_path", str(tmp_path / "val")])
    assert "classes that the training set does not have" in other
    assert "one class, 'a'" in message_of(
        probe.main, [*argv, "--data_path", str(tmp_path / "train")]
    )


def blobs(classes: int, per_class: int, dims: int, spread: float, seed: int = 0) -> Labelled:
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dims, generator=torch.Generator().manual_seed(99)) * 3
    y = torch.arange(classes).repeat_interleave(per_class)
    noise = torch.randn(len(y), dims, generator=rng)
    return Labelled((centres[y] + spread * noise).double(), y)


def test_knn_equals_brute_force() -> None:
    train, test = blobs(7, 9, 5, 3.0), blobs(7, 4, 5, 3.0, seed=1)
    bank, queries = (
        part.x.numpy() / np.linalg.norm(part.x.numpy(), axis=1, keepdims=True)
        for part in (train, test)
    )
    labels, temperature = train.y.numpy(), 0.07
    expected = {k: np.zeros((len(test), 7)) for k in (1, 5, 20)}
    for i, query in enumerate(queries):
        similarity = np.array([query @ other for other in bank])
        order = np.argsort(-similarity)
        for k, votes in expected.items():
            shares = np.exp(similarity[order[:k]] / temperature)
            for j, share in zip(order[:k], shares / shares.sum(), strict=True):
                votes[i, labels[j]] += share
    unit = Labelled(torch.from_numpy(bank), train.y)
    votes = knn_votes(unit, torch.from_numpy(queries), 7, [1, 5, 20], temperature)
    scores = knn_accuracy(train, test, 7, [1, 5, 20], temperature)
    for k, by_hand in expected.items():
        np.testing.assert_allclose(votes[k].numpy(), by_hand, atol=1e-12)
        right = by_hand.argmax(1) == test.y.numpy()
        assert scores[k]["acc1"] == pytest.approx(100 * right.mean())
        assert ("acc5" in scores[k]) == (k >= 5)
    best = np.argsort(-expected[20], axis=1)[:, :5]
    right = (best == test.y.numpy()[:, None]).any(1)
    assert scores[20]["acc5"] == pytest.approx(100 * right.mean())


def test_knn_ignores_lengths_and_caps_k(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = blobs(3, 4, 4, 0.1), blobs(3, 5, 4, 0.1, seed=1)
    longer = Labelled(train.x * torch.arange(1, 13)[:, None], train.y)
    scores = knn_accuracy(longer, test, 3, [2, 50, 60], 0.07)
    assert list(scores) == [2, 12] and scores[2] == {"acc1": 100.0}
    noisy = blobs(3, 5, 4, 5.0, seed=2)
    whole = knn_accuracy(train, noisy, 3, [2], 0.07)
    monkeypatch.setattr("multimae.inference.neighbours.CHUNK", 4)
    assert knn_accuracy(train, noisy, 3, [2], 0.07) == whole


@pytest.mark.parametrize("chunk", [4096, 7])
def test_logistic_regression_is_at_its_minimum(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("multimae.inference.neighbours.CHUNK", chunk)
    (train,) = standardize(blobs(4, 15, 6, 4.0))
    model = fit_logistic(train, 4, l2=0.01, max_iterations=500)
    weight, bias = model.weight.clone().requires_grad_(), model.bias.clone().requires_grad_()
    loss = F.cross_entropy(train.x @ weight + bias, train.y) + 0.005 * weight.square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and bias.grad is not None
    largest = max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))
    assert largest < 2e-6 and model.gradient == pytest.approx(largest, abs=1e-9)
    warm = fit_logistic(train, 4, 0.01, 500, start=fit_logistic(train, 4, 1.0, 500))
    assert torch.allclose(warm.weight, model.weight, atol=1e-4)


def test_logistic_regression_learns_class_frequencies_without_features() -> None:
    y = torch.tensor([0] * 6 + [1] * 3 + [2])
    model = fit_logistic(Labelled(torch.zeros(10, 2).double(), y), 3, 0.1, 200)
    shares = model.bias.softmax(dim=0)
    assert torch.allclose(shares, torch.tensor([0.6, 0.3, 0.1]).double(), atol=1e-5)


def test_separable_classes_reach_full_accuracy() -> None:
    train, test = blobs(7, 10, 16, 0.2), blobs(7, 5, 16, 0.2, seed=1)
    constant = torch.full((len(train), 1), 5.0).double()  # must not be divided by its deviation
    train = Labelled(torch.cat([train.x, constant], dim=1), train.y)
    test = Labelled(torch.cat([test.x, constant[: len(test)]], dim=1), test.y)
    found = linear_probe(train, test, 7, [1e-3, 1.0], held_out=0.2, max_iterations=300, seed=0)
    assert found.scores == {"acc1": 100.0, "acc5": 100.0} == found.train
    assert knn_accuracy(train, test, 7, [5], 0.07)[5]["acc1"] == 100


def test_strength_is_chosen_on_held_out_training_images() -> None:
    train, test = blobs(3, 12, 30, 8.0), blobs(3, 50, 30, 8.0, seed=1)
    grid, options = [1e-4, 1e-1, 100.0], {"held_out": 0.25, "max_iterations": 300}
    found = linear_probe(train, test, 3, grid, seed=3, **options)
    assert found.held_out[found.l2]["acc1"] == max(s["acc1"] for s in found.held_out.values())
    shuffled = Labelled(test.x, test.y.flip(0))
    again = linear_probe(train, shuffled, 3, grid, seed=3, **options)
    assert (again.l2, again.held_out, again.train) == (found.l2, found.held_out, found.train)


def test_the_split_is_stratified_and_deterministic() -> None:
    y = torch.tensor([0] * 10 + [1] * 5 + [2] + [3] * 2)[torch.randperm(18)]
    rest, chosen = stratified_split(y, 0.2, seed=1)
    assert sorted([*rest.tolist(), *chosen.tolist()]) == list(range(18))
    assert torch.bincount(y[chosen], minlength=4).tolist() == [2, 1, 0, 1]
    assert all(map(torch.equal, stratified_split(y, 0.2, seed=1), (rest, chosen)))
    assert not torch.equal(stratified_split(y, 0.2, seed=2)[1], chosen)
    assert "two training images" in message_of(stratified_split, torch.arange(3), 0.2, 0)


def test_chance_is_the_most_frequent_training_class() -> None:
    assert majority_accuracy(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0, 0]), 2) == 25
