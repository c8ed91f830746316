"""Linear probe of frozen features, and baselines.

Shapes: n images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.inference.neighbours import Labelled, chunks, class_meter
from multimae.specs.errors import UserError
from utils.training.seeding import generator

TOLERANCE = 1e-6  # largest absolute entry of the gradient where L-BFGS stops


@dataclass(frozen=True)
class LogisticModel:
    """Multinomial logistic regression.

    Attributes:
        weight: ``(D, K)``.
        bias: ``(K,)``.
        gradient: Largest absolute entry of the objective's gradient, 0 at its minimum.
    """

    weight: Tensor
    bias: Tensor
    gradient: float

    def logits(self, x: Tensor) -> Tensor:
        """``(n, D)`` to ``(n, K)``."""
        return torch.addmm(self.bias, x, self.weight)


@dataclass(frozen=True)
class LinearResult:
    """Results of a linear probe.

    Attributes:
        scores: Test accuracies.
        train: Training accuracies.
        l2: L2 strength selected on the held-out split.
        held_out: L2 strength -> accuracies on the held-out split.
        gradient: See :class:`LogisticModel`.
    """

    scores: dict[str, float]
    train: dict[str, float]
    l2: float
    held_out: dict[float, dict[str, float]]
    gradient: float


def majority_accuracy(train: Tensor, test: Tensor, num_classes: int) -> float:
    """Accuracy in percent of predicting the most frequent training class."""
    most = torch.bincount(train, minlength=num_classes).argmax()
    return 100 * float((test == most).double().mean())


def standardize(train: Labelled, *others: Labelled) -> list[Labelled]:
    """Standardise the features of all sets with the mean and deviation of ``train``."""
    deviation, mean = torch.std_mean(train.x, dim=0, correction=0)
    scale = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.ones_like(deviation))
    return [Labelled((part.x - mean) / scale, part.y) for part in (train, *others)]


def linear_probe(
    train: Labelled,
    test: Labelled,
    num_classes: int,
    strengths: Sequence[float],
    *,
    held_out: float,
    max_iterations: int,
    seed: int,
) -> LinearResult:
    """Fit on ``train`` with the L2 strength that is best on a held-out split of it.

    Args:
        train: Training features.
        test: Test features; not used for model selection.
        num_classes: K.
        strengths: L2 strengths to try.
        held_out: Fraction of every class in the held-out split.
        max_iterations: L-BFGS steps per fit, at most.
        seed: Seed of the split.

    Raises:
        UserError: No class has two images.
    """
    train, test = standardize(train, test)
    rest, chosen = (train[indices] for indices in stratified_split(train.y, held_out, seed))
    found: dict[float, dict[str, float]] = {}
    ranks: dict[float, tuple[float, float]] = {}
    model = None
    for l2 in sorted(set(strengths), reverse=True):
        model = fit_logistic(rest, num_classes, l2, max_iterations, start=model)
        logits = model.logits(chosen.x)
        found[l2] = _accuracy(model, chosen, num_classes)
        # The loss breaks ties.
        ranks[l2] = found[l2]["acc1"], -float(F.cross_entropy(logits, chosen.y))
    best = max(ranks, key=lambda l2: ranks[l2])
    model = fit_logistic(train, num_classes, best, max_iterations)
    return LinearResult(
        _accuracy(model, test, num_classes),
        _accuracy(model, train, num_classes),
        best,
        found,
        model.gradient,
    )


def stratified_split(y: Tensor, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices into training and held-out ones, stratified by class.

    Holds out at least one image of every class that has two.

    Raises:
        UserError: No class has two images.
    """
    rest, chosen = [], []
    for label in torch.bincount(y).nonzero()[:, 0].tolist():
        indices = (y == label).nonzero()[:, 0]
        order = torch.randperm(len(indices), generator=generator("cpu", seed, label))
        indices = indices[order.to(indices.device)]
        count = min(max(1, round(held_out * len(indices))), len(indices) - 1)
        chosen.append(indices[:count])
        rest.append(indices[count:])
    if not any(map(len, chosen)):
        raise UserError("the linear probe needs at least two training images of some class")
    return torch.cat(rest).sort().values, torch.cat(chosen).sort().values


def fit_logistic(
    data: Labelled,
    num_classes: int,
    l2: float,
    max_iterations: int,
    start: LogisticModel | None = None,
) -> LogisticModel:
    """Minimise ``mean cross-entropy + l2 / 2 * |weight|^2`` by full-batch L-BFGS.

    Args:
        data: Features, in the dtype to compute in, and class ids.
        num_classes: K.
        l2: Strength of the penalty, which excludes the bias.
        max_iterations: L-BFGS steps, at most.
        start: Initial solution; default: zero.
    """
    weight = data.x.new_zeros(data.x.shape[1], num_classes)
    bias = data.x.new_zeros(num_classes)
    if start is not None:
        weight, bias = start.weight.clone(), start.bias.clone()

    def evaluate() -> float:
        """Return the objective and set ``.grad``; works in chunks to bound memory."""
        value = 0.5 * l2 * float(weight.square().sum())
        weight.grad, bias.grad = l2 * weight, torch.zeros_like(bias)
        for part in chunks(data):
            log_p = torch.addmm(bias, part.x, weight).log_softmax(dim=1)
            value += float(F.nll_loss(log_p, part.y, reduction="sum")) / len(data)
            error = (log_p.exp() - F.one_hot(part.y, num_classes)) / len(data)
            weight.grad += part.x.T @ error
            bias.grad += error.sum(dim=0)
        return value

    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        history_size=20,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(evaluate)  # type: ignore[no-untyped-call]
    evaluate()
    gradients = (g for g in (weight.grad, bias.grad) if g is not None)
    return LogisticModel(weight, bias, max(float(g.abs().max()) for g in gradients))


def _accuracy(model: LogisticModel, data: Labelled, num_classes: int) -> dict[str, float]:
    meter = class_meter(num_classes, data.x.device)
    for part in chunks(data):
        meter.update(model.logits(part.x), part.y)
    return meter.compute()
