"""Effective rank, and nearest neighbours without the image itself."""

from __future__ import annotations

import pytest
import torch

from multimae.inference.neighbours import Labelled, knn_accuracy, rankme


def test_rankme_counts_equal_directions() -> None:
    basis, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    for rank in (1, 3, 8):
        assert rankme(basis[:, :rank] @ basis[:rank]) == pytest.approx(rank, rel=1e-4)
    assert rankme(torch.zeros(4, 3)) == 0


def test_rankme_of_two_unequal_directions() -> None:
    x = torch.diag(torch.tensor([3.0, 1.0]))
    expected = torch.tensor([0.75, 0.25])
    entropy = -(expected * expected.log()).sum()
    assert rankme(x) == pytest.approx(float(entropy.exp()), rel=1e-4)


def test_no_image_is_its_own_neighbour() -> None:
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    paired, crossed = (
        Labelled(x, torch.tensor([0, 0, 1, 1])),
        Labelled(x, torch.tensor([0, 1, 0, 1])),
    )
    assert knn_accuracy(paired, paired, 2, [1], 0.07, leave_one_out=True)[1]["acc1"] == 100
    assert knn_accuracy(crossed, crossed, 2, [1], 0.07, leave_one_out=True)[1]["acc1"] == 0
    assert list(knn_accuracy(paired, paired, 2, [20], 0.07, leave_one_out=True)) == [3]
