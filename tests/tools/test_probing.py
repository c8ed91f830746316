"""Classifiers on features: against brute force, at their minimum, on separable classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.image_folders import message_of
from tools.probing.classifiers import (
    fit_logistic,
    knn_accuracy,
    knn_votes,
    linear_probe,
    majority_accuracy,
    standardize,
    stratified_split,
)
from tools.probing.features import Labelled


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
    monkeypatch.setattr("tools.probing.classifiers.CHUNK", 4)
    assert knn_accuracy(train, noisy, 3, [2], 0.07) == whole


@pytest.mark.parametrize("chunk", [4096, 7])
def test_logistic_regression_is_at_its_minimum(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("tools.probing.classifiers.CHUNK", chunk)
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


def test_separable_classes_are_told_apart() -> None:
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
