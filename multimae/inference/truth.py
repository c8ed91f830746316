"""The truth of predictions: how its files are read, which pixels count, and its scores.

The evaluators of the training scripts and ``multimae predict --truth`` share these rules (SPEC
section 6). Shapes: B batch, K classes, C predicted channels, H and W of the model's input.
"""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.images.pixels import Array, ImageError, Pixels
from multimae.images.preprocess import per_channel, pixels_with_value, to_model_input
from multimae.inference.meters import MeanMeter, Meter
from multimae.inference.metrics import AccuracyMeter, DepthMeter, SegmentationMeter
from multimae.specs.class_names import ADE20K_CLASSES, NYU40_CLASSES
from multimae.specs.heads import MM_PER_M, HeadSpec
from multimae.specs.modalities import VOID, Modality

IGNORE = VOID
"""Label of pixels that do not count."""
MASK_VALID = "mask_valid"
"""Folder of the maps of valid pixels."""
MASK_THRESHOLD = 127  # mask_valid is 0 or 255
ZBUFFER = "depth_zbuffer"
"""The Taskonomy task whose saturated pixels are invalid for all tasks."""
SATURATED = 65535
BLOCK = 4  # side of the blocks of pixels that are valid only together
BLURRED = "edge_occlusion"
NEAREST_M, FARTHEST_M = 0.256, 1000.0
"""Depth of a data set that is nearer or farther in all pixels has another unit."""


def stored_target(target: Modality) -> Modality:
    """Modality that reads label maps as stored: every 8-bit id, void included."""
    return dataclasses.replace(target, num_classes=IGNORE + 1, class_names=())


def with_no_data(target: Modality, stored: float | None) -> Modality:
    """Add the stored value of empty pixels, which are void."""
    if stored is None:
        return target
    if target.label_map:
        from multimae.specs.label_map import with_stored_void

        return dataclasses.replace(target, label_map=with_stored_void(target.label_map, stored))
    return dataclasses.replace(target, no_data=stored)


def mask_modality() -> Modality:
    """Modality of the maps of valid pixels."""
    return Modality(MASK_VALID, num_channels=1, interpolation="nearest", plot="scalar")


def stored_zbuffer() -> Modality:
    """Modality of Taskonomy's z-buffer depth as stored."""
    return Modality(
        ZBUFFER, num_channels=1, max_value=65535.0, interpolation="nearest", plot="scalar"
    )


def first_id_is_void(head: HeadSpec) -> bool | None:
    """Whether stored label 0 is void and classes count from 1; ``None`` if unknown."""
    if head.zero_is_void is None and head.target.class_names in (NYU40_CLASSES[1:], ADE20K_CLASSES):
        return True  # as these data sets store them
    return head.zero_is_void


def validity_mask(pixels: Pixels, path: object) -> npt.NDArray[np.uint8]:
    """A validity mask as 0 and 255; a file of 0 and 1 marks valid pixels by 1.

    Raises:
        ImageError: It holds other values.
    """
    values = np.asarray(pixels)
    found = set(np.unique(values).tolist())
    if not (found <= {0, 255} or found <= {0, 1}):
        other = min(found - {0, 255})
        raise ImageError(
            f"{path}: a validity mask holds 0 and 255 (valid), or 0 and 1; this one has "
            f"{other}. Store it as 0 and 255."
        )
    return np.where(values > 0, 255, 0).astype(np.uint8)


def with_void(labels: Array, target: Modality) -> Array:
    """Stored labels whose pixels of ``target.no_data`` are :data:`IGNORE`."""
    return (
        labels
        if target.no_data is None
        else np.where(labels == target.no_data, np.uint8(IGNORE), labels)
    )


def label_problem(
    labels: Array, path: object, size: tuple[int, int], num_classes: int, zero_is_void: bool
) -> str:
    """What is wrong with a stored label map; empty if nothing is.

    Args:
        labels: Ids as stored.
        path: Its file, for the message.
        size: ``(H, W)`` of the sample's largest image.
        num_classes: Classes without void.
        zero_is_void: Ids are ``1 .. num_classes`` and 0 is void; else ``0 .. num_classes - 1``.
    """
    if labels.shape != size:
        return (
            f"{path}: the label map is {labels.shape[0]} x {labels.shape[1]} (H x W) but the "
            f"images of the sample are {size[0]} x {size[1]}. Store it at their size, "
            "resized without interpolation."
        )
    first = int(zero_is_void)
    last, void = num_classes - 1 + first, (0, IGNORE) if zero_is_void else (IGNORE,)
    ids = np.unique(labels)
    valid, listed = ids[~np.isin(ids, void)], " and ".join(map(str, void))
    if not len(valid):
        return f"{path}: every pixel of the label map is void ({listed}). Remove the sample."
    wrong = valid[(valid < first) | (valid > last)]
    if len(wrong):
        return (
            f"{path}: class id {int(wrong[0])} is outside {first}..{last} (void: "
            f"{listed}). Set num_classes and seg_reduce_zero_label to what the files hold, or "
            "remap the ids."
        )
    return ""


def class_labels(stored: Tensor, inside: Tensor, zero_is_void: bool) -> Tensor:
    """Class ids (B, H, W) of stored labels, with void and padding as :data:`IGNORE`."""
    stored = stored.long()
    void = stored == IGNORE
    if zero_is_void:
        void |= stored == 0
        stored = stored - 1
    return stored.masked_fill(void | ~inside, IGNORE)


def pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every pixel that counts, flat."""
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return losses[labels != IGNORE]


def normalized_target(raw: Tensor, modality: Modality, predicted: Modality) -> Tensor:
    """Normalized truth (B, C, H, W), clipped at the modality's ``max_value``.

    Args:
        raw: Stored values.
        modality: Modality of the files.
        predicted: Modality of the predicted channels, the first of the files.
    """
    x = to_model_input(raw, modality)[:, : predicted.num_channels]
    top = tuple((1 - m) / s for m, s in zip(predicted.mean, predicted.std, strict=True))
    return torch.minimum(x, per_channel(top, x.device))


def stored_values(x: Tensor, modality: Modality) -> Tensor:
    """Stored values of a normalized map with one channel, such as depth."""
    return (x.float() * modality.std[0] + modality.mean[0]) * modality.max_value


def valid_depth(raw: Tensor, modality: Modality, mask: Tensor | None) -> Tensor:
    """Pixels of measured depth (finite, above 0, not ``no_data``) that ``mask`` keeps."""
    depth = raw if raw.is_floating_point() else raw.to(torch.int32)
    valid = (depth > 0) & depth.isfinite()
    has_value = pixels_with_value(raw, modality)
    if has_value is not None:
        valid &= has_value
    return valid if mask is None else valid & (mask > MASK_THRESHOLD)


def valid_taskonomy(zbuffer: Tensor | None, mask: Tensor | None) -> Tensor:
    """Valid blocks of pixels (B, 1, H, W): as ``mask`` says, else as stored z-buffer depth does."""
    if mask is not None:
        return valid_blocks(mask == 255)
    assert zbuffer is not None
    return valid_blocks(zbuffer.float() < SATURATED)


def valid_blocks(valid: Tensor) -> Tensor:
    """Keep the disjoint 4 x 4 blocks of a mask (B, 1, H, W) whose pixels are all valid."""
    invalid = F.max_pool2d((~valid).float(), BLOCK, ceil_mode=True)
    grown = invalid.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
    return grown[..., : valid.shape[-2], : valid.shape[-1]] == 0


def blur_edges(truth: Tensor) -> Tensor:
    """Blur by a 3 x 3 Gaussian of sigma 1, as the truth of edge_occlusion is."""
    from torchvision.transforms.functional import gaussian_blur

    blurred: Tensor = gaussian_blur(truth, [3, 3], [1.0, 1.0])
    return blurred


def depth_problem(found: tuple[float, float], scale: float) -> str:
    """What is unlikely about true depth; empty if nothing is.

    Args:
        found: Least and largest stored value.
        scale: Metres per stored unit.
    """
    low, high = (value * scale for value in found)
    if high >= NEAREST_M and low <= FARTHEST_M:
        return ""
    return (
        f"is {low:.4g} to {high:.4g} m in the checked samples: stored values {found[0]:.6g} to "
        f"{found[1]:.6g} at depth_scale {scale:g}"
    )


class Scores(ABC):
    """Metrics of one task, as meters that processes can add up."""

    meters: tuple[Meter, ...]

    def compute(self) -> dict[str, float]:
        """Metrics by name."""
        values: dict[str, float] = {}
        for meter in self.meters:
            values |= meter.compute()
        return values


class ClassScores(Scores):
    """``acc1``, ``acc5`` (percent) and ``loss``."""

    def __init__(self, device: torch.device) -> None:
        """Start at zero."""
        self._accuracy, self._mean = AccuracyMeter(device=device), MeanMeter(["loss"], device)
        self.meters = (self._accuracy, self._mean)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count logits (B, K) and class ids (B,)."""
        self._accuracy.update(logits, labels)
        self._mean.update({"loss": F.cross_entropy(logits, labels, reduction="none")})


class LabelScores(Scores):
    """``mean_iou``, ``mean_accuracy`` (percent), ``pixel_accuracy`` and ``loss``."""

    def __init__(self, num_classes: int, learns_padding: bool, device: torch.device) -> None:
        """``learns_padding``: padding is class ``num_classes`` in the loss."""
        self.num_classes, self.learns_padding = num_classes, learns_padding
        self.confusion = SegmentationMeter(num_classes, IGNORE, device)
        self._mean = MeanMeter(["loss"], device)
        self.meters = (self.confusion, self._mean)

    def update(self, logits: Tensor, labels: Tensor, padding: Tensor) -> None:
        """Count logits (B, K, H, W), :func:`class_labels` and the mask of padding."""
        learned = labels.masked_fill(padding, self.num_classes) if self.learns_padding else labels
        self._mean.update({"loss": pixel_losses(logits, learned)})
        self.confusion.update(logits[:, : self.num_classes].argmax(dim=1), labels)


class DepthScores(Scores):
    """``delta_1..3``, ``rel``, ``srel``, ``rmse`` (mm) and ``log10``."""

    def __init__(self, target: Modality, scale: float, device: torch.device) -> None:
        """``target``: modality of the depth; ``scale``: metres per stored value."""
        self.target, self._mm = target, scale * MM_PER_M
        self._meter = DepthMeter(device)
        self.meters = (self._meter,)

    def update(self, output: Tensor, raw: Tensor, valid: Tensor) -> None:
        """Count normalized predictions, stored depth and the pixels that count."""
        predicted = stored_values(output, self.target) * self._mm
        self._meter.update(predicted, raw.float() * self._mm, valid)


class L1Scores(Scores):
    """``l1/{head}`` in normalized units, and their mean ``l1``."""

    def __init__(self, heads: Sequence[str], device: torch.device) -> None:
        """``heads``: their names."""
        self._meter = MeanMeter([f"l1/{name}" for name in heads], device)
        self.meters = (self._meter,)

    def update(
        self, outputs: Mapping[str, Tensor], truth: Mapping[str, Tensor], valid: Tensor
    ) -> None:
        """Count outputs and normalized truth by head, and the pixels that count."""
        for name, target in truth.items():
            error = (outputs[name] - target).abs().mean(dim=1, keepdim=True)
            self._meter.update({f"l1/{name}": error[valid]})

    def compute(self) -> dict[str, float]:
        """Metrics by name."""
        return with_mean(super().compute())


def with_mean(values: Mapping[str, float], prefix: str = "") -> dict[str, float]:
    """Add the mean of the errors of all heads, ``{prefix}l1``."""
    return {**values, f"{prefix}l1": sum(values.values()) / len(values)}
