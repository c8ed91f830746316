"""Metrics of several labels, or of numbers, per image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.inference.meters import MeanMeter, Meter, ratio
from multimae.inference.truth import Scores


class MultiLabelMeter(Meter):
    """Mean average precision and F1 of several labels per image, in percent.

    Keeps all scores, which average precision sorts: 16 bytes per sample and class.

    Args:
        num_samples: ``N``.
        num_classes: ``K``.
        device: See :class:`Meter`.
    """

    def __init__(
        self, num_samples: int, num_classes: int, device: torch.device | str | None = None
    ) -> None:
        """Start at zero."""
        super().__init__(2 * num_samples * num_classes, device)
        self.shape = (2, num_samples, num_classes)

    def update(self, rows: Sequence[int], logits: Tensor, targets: Tensor) -> None:
        """Count a batch.

        Args:
            rows: Index of every sample in the data set.
            logits: ``[B, K]``.
            targets: ``[B, K]`` of 0 and 1; NaN: unknown, which does not count.
        """
        scores, codes = self._sums.view(self.shape)
        # 0: not counted, 1: negative, 2: positive; sums of shards are unions.
        known = torch.nan_to_num(targets.double() + 1, nan=0.0)
        scores[rows] = logits.detach().double().to(scores.device)
        codes[rows] = known.to(codes.device)

    def compute(self) -> dict[str, float]:
        """``map``, the mean over classes with a positive and, above probability 0.5, ``f1_*``."""
        scores, codes = self._sums.view(self.shape)
        positive, known = codes == 2, codes > 0
        predicted = (scores > 0) & known
        hits = (predicted & positive).sum(dim=0)
        wrong = (predicted & ~positive).sum(dim=0)
        missed = (~predicted & positive).sum(dim=0)
        used = positive.any(dim=0)
        precision = [
            average_precision(scores[known[:, k], k], positive[known[:, k], k])
            for k in torch.nonzero(used).flatten().tolist()
        ]
        f1 = (2 * hits / (2 * hits + wrong + missed))[used]
        total = int(2 * hits.sum() + wrong.sum() + missed.sum())
        return {
            "map": 100 * ratio(sum(precision), len(precision)),
            "f1_micro": 100 * ratio(2 * float(hits.sum()), total),
            "f1_macro": 100 * ratio(float(f1.sum()), len(f1)),
        }


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Mean of the precision at every positive, by falling score; equal scores are one step."""
    order = scores.argsort(descending=True)
    scores, hits = scores[order], positive[order].double().cumsum(dim=0)
    last = torch.ones_like(scores, dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]
    counts = torch.arange(1, len(scores) + 1, device=scores.device)[last]
    hits = hits[last]
    steps = torch.diff(hits, prepend=hits.new_zeros(1))
    return float((steps * hits / counts).sum() / hits[-1])


def label_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of several labels [B, K]; 0 where the target is NaN."""
    known = targets.isfinite()
    truth = torch.where(known, targets, 0.0)
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return torch.where(known, each, 0.0)


class MultiLabelScores(Scores):
    """``map``, ``f1_micro``, ``f1_macro`` (percent) and ``loss``."""

    def __init__(self, samples: Iterable[str], num_classes: int, device: torch.device) -> None:
        """``samples``: names of all that may be counted."""
        self._rows = {name: i for i, name in enumerate(samples)}
        self._ranking = MultiLabelMeter(len(self._rows), num_classes, device)
        self._mean = MeanMeter(["loss"], device)
        self.meters = (self._ranking, self._mean)

    def update(self, names: Sequence[str], logits: Tensor, targets: Tensor) -> None:
        """Count logits and targets [B, K] of named samples; NaN: unknown."""
        self._mean.update({"loss": label_losses(logits, targets)}, targets.isfinite())
        self._ranking.update([self._rows[name] for name in names], logits, targets)


class NumberMeter(Meter):
    """Mean absolute error, root mean square error and R² of numbers, by name.

    Args:
        names: The numbers.
        mean: Of the training set.
        std: Of the training set; sums of standardized values do not cancel.
        device: See :class:`Meter`.
    """

    def __init__(
        self,
        names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str | None = None,
    ) -> None:
        """Start at zero."""
        super().__init__(5 * len(names), device)
        self.names, self.mean, self.std = tuple(names), tuple(mean), tuple(std)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count standardized outputs and targets ``[B, C]``; NaN targets do not count."""
        known = targets.isfinite()
        truth = torch.where(known, targets, 0.0).double()
        error = torch.where(known, outputs.double() - truth, 0.0)
        sums = [known.double(), error.abs(), error.square(), truth, truth.square()]
        self._sums += torch.stack([s.sum(dim=0) for s in sums]).flatten().to(self._sums.device)

    def compute(self) -> dict[str, float]:
        """``mae``, ``rmse`` (in the unit) and ``r2``, of several numbers with ``/name``."""
        sums = self._sums.view(5, -1).T.tolist()
        values: dict[str, float] = {}
        for name, std, (count, absolute, square, total, squares) in zip(
            self.names, self.std, sums, strict=True
        ):
            spread = squares - total * ratio(total, count) if count else 0.0
            end = f"/{name}" if len(self.names) > 1 else ""
            values[f"mae{end}"] = std * ratio(absolute, count)
            values[f"rmse{end}"] = std * math.sqrt(ratio(square, count)) if count else math.nan
            values[f"r2{end}"] = 1 - ratio(square, spread) if spread > 0 else math.nan
        return values


class NumberScores(Scores):
    """Metrics of a :class:`NumberMeter`; the loss is an option of training."""

    def __init__(self, meter: NumberMeter) -> None:
        """Count with ``meter``."""
        self._meter = meter
        self.meters = (meter,)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count standardized outputs and targets ``[B, C]``; NaN: unknown."""
        self._meter.update(outputs, targets)
