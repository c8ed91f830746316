"""Frozen features: weighted k nearest neighbours, effective rank.

Shapes: n images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.inference.metrics import AccuracyMeter

CHUNK = 4096  # images per block of similarities or logits
TOP = 5  # top-5 accuracy needs more classes than that, and at least as many neighbours
RANK_EPSILON = 1e-7


@dataclass(frozen=True)
class Labelled:
    """Features ``x`` (n, D) of a set and their class ids ``y`` (n,)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.y)

    def __getitem__(self, indices: Tensor) -> Labelled:
        """Select images by index."""
        return Labelled(self.x[indices], self.y[indices])

    def to(self, device: torch.device, dtype: torch.dtype) -> Labelled:
        """Move to ``device``; features become ``dtype``."""
        return Labelled(self.x.to(device, dtype), self.y.to(device))


def knn_accuracy(
    train: Labelled,
    test: Labelled,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
    *,
    leave_one_out: bool = False,
) -> dict[int, dict[str, float]]:
    """Accuracies by number of neighbours, capped at the size of the training set.

    With ``leave_one_out``, ``test`` is ``train``, and no image is its own neighbour.
    """
    ks = sorted({min(k, len(train) - leave_one_out) for k in ks})
    bank = Labelled(F.normalize(train.x, dim=1), train.y)
    meters = {k: class_meter(num_classes if k >= TOP else k, test.x.device) for k in ks}
    first = 0
    for part in chunks(test):
        own = torch.arange(first, first + len(part), device=part.x.device)
        x, first = F.normalize(part.x, dim=1), first + len(part)
        votes = knn_votes(bank, x, num_classes, ks, temperature, own if leave_one_out else None)
        for k, meter in meters.items():
            meter.update(votes[k], part.y)
    return {k: meter.compute() for k, meter in meters.items()}


def knn_votes(
    bank: Labelled,
    x: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
    own: Tensor | None = None,
) -> dict[int, Tensor]:
    """Votes ``(n, K)`` of the ``k`` nearest, weighted by the softmax of similarity / temperature.

    Wu et al. (2018), "Unsupervised feature learning via non-parametric instance discrimination".

    Args:
        bank: Unit vectors with classes, at least as many as the largest ``k``.
        x: Unit vectors (n, D).
        num_classes: K.
        ks: Numbers of neighbours.
        temperature: Of the softmax.
        own: (n,) index in ``bank`` of every vector, which is not its neighbour.
    """
    similarities = x @ bank.x.T
    if own is not None:
        similarities[torch.arange(len(x), device=x.device), own] = -torch.inf
    similarity, nearest = similarities.topk(max(ks), dim=1)
    classes = bank.y[nearest]
    votes = {}
    for k in ks:
        weights = (similarity[:, :k] / temperature).softmax(dim=1)
        votes[k] = x.new_zeros(len(x), num_classes).scatter_add_(1, classes[:, :k], weights)
    return votes


def rankme(x: Tensor) -> float:
    """Effective rank of features ``(n, D)``: the exponential of the entropy of singular values.

    Garrido et al. (2023), "RankMe: assessing the downstream performance of pretrained
    self-supervised representations by their rank". 0 if all features are 0.
    """
    values = torch.linalg.svdvals(x.double())
    total = float(values.sum())
    if not total > 0:
        return 0.0
    shares = values / total + RANK_EPSILON
    return float(torch.exp(-(shares * shares.log()).sum()))


def chunks(data: Labelled) -> Iterator[Labelled]:
    """Consecutive parts of a set."""
    for first in range(0, len(data), CHUNK):
        chunk = slice(first, first + CHUNK)
        yield Labelled(data.x[chunk], data.y[chunk])


def class_meter(num_classes: int, device: torch.device) -> AccuracyMeter:
    """Top-1 accuracy, and top-5 accuracy with enough classes."""
    return AccuracyMeter((1, TOP) if num_classes > TOP else (1,), device)
