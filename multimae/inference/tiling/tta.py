"""Test-time augmentation: outputs averaged over mirrored and resized inputs.

Works on model inputs. Shapes: B batch, C channels, H and W at full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.nn.tokens import Size
from multimae.specs.heads import HeadSpec
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec

SCALES = (0.75, 1.0, 1.25)
_LIMITS = (0.1, 8.0)


@dataclass(frozen=True)
class Augmentation:
    """Inputs to average over.

    Attributes:
        flip: Also mirror left and right.
        scales: Factors on the size.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """Read ``flip``, ``scales`` (:data:`SCALES`) or numbers, joined by commas; ``""``: none.

        Raises:
            ValueError: Something else, or a scale out of range.
        """
        flip, scales = False, list[float]()
        defaults = False
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = item.partition("=")
            if item == "flip":
                flip = True
            elif item == "scales":
                defaults = True
            else:
                scales.append(_scale(value if name == "scales" and equals else item, text))
        return cls(flip, tuple(dict.fromkeys(scales)) or (SCALES if defaults else (1.0,)))

    @property
    def count(self) -> int:
        """Forward passes per image."""
        return len(self.scales) * (1 + self.flip)


def _scale(item: str, text: str) -> float:
    try:
        value = float(item)
    except ValueError:
        value = math.nan
    if not _LIMITS[0] <= value <= _LIMITS[1]:
        raise ValueError(
            f"tta {text!r}: {item!r} is not one of flip, scales, or a scale from {_LIMITS[0]:g} to "
            f"{_LIMITS[1]:g}, such as flip,scales or flip,0.5,1,2"
        )
    return value


def size_unit(spec: ModelSpec, modalities: Sequence[Modality]) -> int:
    """What the sides of a model's input must be multiples of."""
    return math.lcm(*(math.lcm(m.patch_size or spec.patch_size, m.stride) for m in modalities))


def augmented_outputs(
    forward: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    x: Mapping[str, Tensor],
    spec: ModelSpec,
    augmentation: Augmentation,
) -> dict[str, Tensor]:
    """Average the outputs of all heads.

    Args:
        forward: Model inputs -> output of every head, (B, C, H, W) or (B, K).
        x: Model inputs by modality.
        spec: Spec of the model.
        augmentation: What to average over.
    """
    if augmentation == Augmentation():
        return dict(forward(x))
    modalities = [m for m in spec.inputs if m.name in x]
    first = modalities[0]
    height, width = (side * first.stride for side in x[first.name].shape[-2:])
    total: dict[str, Tensor] = {}
    unit = size_unit(spec, modalities)
    for scale in augmentation.scales:
        size = (_multiple(scale * height, unit), _multiple(scale * width, unit))
        scaled = x if scale == 1 else {m.name: _resized(x[m.name], m, size) for m in modalities}
        for flip in (False, True)[: 1 + augmentation.flip]:
            inputs = {m.name: mirrored(scaled[m.name], m) for m in modalities} if flip else scaled
            for name, output in forward(inputs).items():
                head = next(h for h in spec.heads if h.name == name)
                one = _restored(output, head, (height, width), flip)
                total[name] = total[name] + one if name in total else one
    return {name: output / augmentation.count for name, output in total.items()}


def mirrored(x: Tensor, modality: Modality) -> Tensor:
    """Mirror model inputs or outputs, and the channels that change their sign with it."""
    x = x.flip(-1)
    channels = list(modality.mirrored_channels)
    if modality.is_labels or not channels:
        return x
    mean, std = (
        torch.tensor(v * (modality.num_channels if len(v) == 1 else 1), device=x.device)[channels]
        for v in (modality.mean, modality.std)
    )
    # Integers are mirrored about the middle of their range, floats about 0.
    middle = -2 * mean if modality.storage == "float" else 1 - 2 * mean
    if modality.normalization == "robust":
        middle = torch.zeros_like(mean)
    negated = (middle / std).view(-1, 1, 1) - x[:, channels]
    if modality.no_data is not None:  # such pixels are 0 in every channel
        negated = negated.masked_fill((x == 0).all(dim=1, keepdim=True), 0.0)
    x[:, channels] = negated.to(x.dtype)
    return x


def _multiple(side: float, unit: int) -> int:
    return max(1, round(side / unit)) * unit


def _resized(x: Tensor, m: Modality, size: Size) -> Tensor:
    size = (size[0] // m.stride, size[1] // m.stride)
    if m.is_labels:
        return F.interpolate(x[:, None].float(), size, mode="nearest-exact")[:, 0].long()
    if m.interpolation == "nearest":
        return F.interpolate(x, size, mode="nearest-exact")
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)


def _restored(output: Tensor, head: HeadSpec, size: Size, flip: bool) -> Tensor:
    """Undo flip and scale of an output."""
    if output.ndim < 4:
        return output
    if flip:
        output = output.flip(-1) if head.target.is_labels else mirrored(output, head.target)
    if tuple(output.shape[-2:]) == size:
        return output
    return F.interpolate(output, size, mode="bilinear", align_corners=False)
