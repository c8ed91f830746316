"""Metrics of the fine-tuning tasks: accuracy, segmentation, depth (SPEC section 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from multimae.inference.meters import Meter, ratio


class AccuracyMeter(Meter):
    """Share of samples whose class is among the ``k`` best, in percent: ``acc1``, ``acc5``.

    Args:
        topk: The values of ``k``. One larger than the number of classes is always right.
        device: See :class:`Meter`.
    """

    def __init__(
        self, topk: Sequence[int] = (1, 5), device: torch.device | str | None = None
    ) -> None:
        """Start at zero."""
        super().__init__(1 + len(topk), device)
        self.topk = tuple(topk)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch: ``logits`` ``[B, K]``, ``target`` ``[B]`` class ids."""
        best = logits.topk(min(max(self.topk), logits.shape[1]), dim=1).indices
        hits = best == target[:, None]
        self._add(
            [torch.tensor(len(target), device=hits.device)] + [hits[:, :k].sum() for k in self.topk]
        )

    def compute(self) -> dict[str, float]:
        """``acc{k}`` in percent."""
        count, *hits = self._sums.tolist()
        return {f"acc{k}": 100 * ratio(h, count) for k, h in zip(self.topk, hits, strict=True)}


class SegmentationMeter(Meter):
    """Confusion matrix of a label map and the metrics on it.

    Args:
        num_classes: ``K``.
        ignore_index: Target value of pixels that do not count.
        device: See :class:`Meter`.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        device: torch.device | str | None = None,
    ) -> None:
        """Start at zero."""
        super().__init__(num_classes * num_classes, device)
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    @property
    def confusion(self) -> Tensor:
        """Pixels by target (row) and prediction (column), ``[K, K]``."""
        return self._sums.view(self.num_classes, self.num_classes)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            pred: Class ids, any shape.
            target: Class ids or ``ignore_index``, the same shape.

        Raises:
            ValueError: Shapes differ, or an id is outside ``0..K-1``.
        """
        if pred.shape != target.shape:
            raise ValueError(
                f"prediction {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape"
            )
        counted = target != self.ignore_index
        pairs = torch.stack([target[counted].long(), pred[counted].long()])
        if pairs.numel() == 0:
            return
        low, high = (int(v) for v in torch.aminmax(pairs))
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"class ids {low}..{high} outside 0..{self.num_classes - 1} "
                f"(ignored: {self.ignore_index}): check num_classes and the label files"
            )
        cells = pairs[0] * self.num_classes + pairs[1]
        counts = torch.bincount(cells, minlength=self.num_classes**2)
        self._sums += counts.to(self._sums)

    def per_class(self) -> tuple[Tensor, Tensor]:
        """IoU and accuracy of every class, ``[K]`` each, as fractions.

        IoU is nan where a class is in neither prediction nor target, accuracy where it is not in
        the target.
        """
        hit = self.confusion.diagonal()
        in_target = self.confusion.sum(dim=1)
        in_either = in_target + self.confusion.sum(dim=0) - hit
        return hit / in_either, hit / in_target

    def compute(self) -> dict[str, float]:
        """Means over classes in percent, to 2 decimals; ``pixel_accuracy`` as a fraction."""
        iou, accuracy = self.per_class()
        hit, count = self.confusion.trace(), self._sums.sum()
        means = torch.stack([iou.nanmean() * 100, accuracy.nanmean() * 100, hit / count]).tolist()
        return {
            "mean_iou": round(means[0], 2),
            "mean_accuracy": round(means[1], 2),
            "pixel_accuracy": means[2],
        }


class DepthMeter(Meter):
    """Errors of a depth map in millimetres, over all valid pixels of a set (SPEC section 6).

    Args:
        device: See :class:`Meter`.
    """

    FLOOR = 1e-6
    """Smallest depth in quotients and logarithms, in mm."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        """Start at zero."""
        super().__init__(8, device)

    def update(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            pred: Depth in mm, any shape; may be negative.
            target: Depth in mm, the same shape.
            valid: Pixels that count (not 0), the same shape; all if ``None``.

        Raises:
            ValueError: Shapes differ.
        """
        valid = torch.ones_like(target, dtype=torch.bool) if valid is None else valid != 0
        if not pred.shape == target.shape == valid.shape:
            shapes = ", ".join(str(tuple(t.shape)) for t in (pred, target, valid))
            raise ValueError(f"prediction, target and valid differ in shape: {shapes}")
        p, t = pred.detach().double(), target.double()
        p_pos, t_pos = p.clamp_min(self.FLOOR), t.clamp_min(self.FLOOR)
        ratio = torch.maximum(p / t_pos, t / p_pos)
        diff = p - t
        terms = [
            torch.ones_like(p),
            *((ratio < 1.25**i).double() for i in (1, 2, 3)),
            diff.abs() / t_pos,
            diff.square() / t_pos,
            diff.square(),
            (p_pos.log() - t_pos.log()).square(),
        ]
        self._add([torch.where(valid, term, 0.0) for term in terms])

    def compute(self) -> dict[str, float]:
        """``delta_1..3`` and ``rel`` in 0..1, ``srel`` and ``rmse`` in mm, ``log10``.

        ``log10`` keeps its historical name; it is the root mean square of natural logarithms.
        """
        count, *sums = self._sums.tolist()
        d1, d2, d3, rel, srel, square, log_square = (ratio(s, count) for s in sums)
        return {
            "delta_1": d1,
            "delta_2": d2,
            "delta_3": d3,
            "rel": rel,
            "srel": srel,
            "rmse": math.sqrt(square),
            "log10": math.sqrt(log_square),
        }
