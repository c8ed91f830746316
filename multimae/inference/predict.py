"""Predictions of a fine-tuned model, in their unit and at the image's resolution.

Images are resized as in evaluation, see ``ModelSpec.resize_mode``. Shapes: H and W of the region
the model sees (the centre square for ``crop``, else the full image), K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.images.inputs import Inputs
from multimae.images.views import View
from multimae.nn.network import MultiModalTransformer, autocast
from multimae.nn.tokens import Size
from multimae.plotting import Picture, to_picture, with_void
from multimae.specs.heads import HeadSpec, LinearOptions, reads_all_layers
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec

_BAND_VALUES = 2**24
"""Upsampled logits that are in memory at a time."""


@dataclass(frozen=True)
class ClassPrediction:
    """Class probabilities of an image, sorted, the most probable first.

    Attributes:
        names: Class names.
        probabilities: (K,); of several labels per image each on its own.
        ids: Class ids, (K,).
        multi: Whether an image can have several labels.
    """

    names: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]
    multi: bool = False

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.names[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """The most probable class; of several labels, all more probable than 0.5."""
        if not self.multi:
            return self.names[:1]
        return tuple(n for n, p in zip(self.names, self.probabilities, strict=True) if p > 0.5)


@dataclass(frozen=True)
class NumberPrediction:
    """Numbers of an image, in the unit of the training labels.

    Attributes:
        names: Their names.
        values: (C,).
    """

    names: tuple[str, ...]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class LabelPrediction:
    """Class of every pixel.

    Attributes:
        ids: (H, W), class ids from 0; -1 where no input of a tiled image has a value.
        names: Class names by id; empty if the spec has none.
        logits: (K, h, w) at the model's resolution, without padding; empty for large tiled images.
        target: Target modality.
        view: Box of the image that (H, W) covers.
        confidence: (H, W), softmax of the predicted class, float32; ``None`` if not asked for.
    """

    ids: npt.NDArray[np.int64]
    names: tuple[str, ...]
    logits: Tensor
    target: Modality
    view: View
    confidence: npt.NDArray[np.float32] | None = None

    def picture(self) -> Picture:
        """Colour-coded classes, (H, W, 3)."""
        return to_picture(torch.from_numpy(self.ids + 1), with_void(self.target))

    def shares(self) -> dict[str, float]:
        """Share of the pixels with a class by class, the largest first."""
        known = self.ids[self.ids >= 0]
        ids, counts = np.unique(known, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {
            self.names[i] if self.names else str(i): count / known.size
            for i, count in zip(ids[order].tolist(), counts[order].tolist(), strict=True)
        }


@dataclass(frozen=True)
class ValuePrediction:
    """Values of every pixel, such as depth.

    Attributes:
        values: (H, W), or (H, W, C) for several channels, float32, in ``unit``: depth in metres.
        unit: Unit of the values; empty: a scale from 0 to 1.
        normalized: (C, h, w), the head's output at the model's resolution.
        target: Target modality.
        view: Box of the image that (H, W) covers.
    """

    values: npt.NDArray[np.float32]
    unit: str
    normalized: Tensor
    target: Modality
    view: View

    def picture(self) -> Picture:
        """(h, w, 3) at the model's resolution; scalar maps are colour-mapped."""
        return to_picture(self.normalized, self.target)


DensePrediction = LabelPrediction | ValuePrediction
Prediction = ClassPrediction | NumberPrediction | DensePrediction


@torch.inference_mode()
def predict(
    model: MultiModalTransformer, spec: ModelSpec, inputs: Inputs
) -> list[dict[str, Prediction]]:
    """Run all heads; return one dict per sample; see :meth:`multimae.MultiMAE.predict`."""
    if not spec.heads:
        raise ValueError(f"{spec.name} has no heads: fine-tune it first, or use reconstruct()")
    if not inputs.views:
        raise ValueError("predict() needs stored images, not tensors: call the model itself")
    return to_predictions(spec, head_outputs(model, inputs.x), inputs)


def head_outputs(model: MultiModalTransformer, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 output of every head, on the device."""
    predicted = model.apply_heads(x, reads_all_layers(model))
    return {name: output.float() for name, output in predicted.items()}


Forward = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Model inputs -> float32 output of every head, on the device."""


def forward_of(model: MultiModalTransformer, dtype: torch.dtype | None = None) -> Forward:
    """Forward pass of a model on its device; ``dtype``: autocast type, ``None`` is float32."""
    device = model.global_tokens.device

    def forward(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with autocast(device.type, dtype):
            return head_outputs(model, {name: value.to(device) for name, value in x.items()})

    return forward


def pad_batch(x: Tensor, size: int) -> Tensor:
    """Pad ``x`` to ``size`` samples with copies of the last one.

    Kernels, and with them the last digits, depend on the batch size.
    """
    missing = max(0, size - len(x))
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x


def to_predictions(
    spec: ModelSpec, outputs: Mapping[str, Tensor], inputs: Inputs, *, confidence: bool = False
) -> list[dict[str, Prediction]]:
    """Predictions per sample from the outputs of the heads.

    Args:
        spec: Spec of the model.
        outputs: Of every head; samples beyond those of ``inputs`` are ignored.
        inputs: The batch.
        confidence: Compute the confidence of labels.
    """
    return [
        {
            head.name: _prediction(head, outputs[head.name][i], inputs, i, confidence)
            for head in spec.heads
        }
        for i in range(len(inputs))
    ]


def _prediction(
    head: HeadSpec, output: Tensor, inputs: Inputs, index: int, confidence: bool
) -> Prediction:
    if isinstance(head.options, LinearOptions):
        return _of_image(head.target, head.options, output.cpu())
    height, width = inputs.inside[index]
    output = output[:, :height, :width]
    view = inputs.views[index]
    if not head.target.is_labels:
        return _values(head, output.cpu(), view)
    logits = output[: head.target.num_classes]
    ids, share = _most_probable(logits, (view.height, view.width), confidence)
    return LabelPrediction(ids, head.target.class_names, logits.cpu(), head.target, view, share)


def _of_image(
    target: Modality, options: LinearOptions, output: Tensor
) -> ClassPrediction | NumberPrediction:
    if options.predicts == "number":
        values = output * torch.tensor(target.std) + torch.tensor(target.mean)
        return NumberPrediction(target.class_names, values.numpy())
    multi = options.predicts == "multi"
    shares = output.sigmoid() if multi else output.softmax(dim=0)
    probabilities, order = shares.sort(descending=True)
    names = tuple(
        target.class_names[i] if i < len(target.class_names) else str(i) for i in order.tolist()
    )
    return ClassPrediction(names, probabilities.numpy(), order.numpy(), multi)


def _most_probable(
    logits: Tensor, size: Size, confidence: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
    """Class of every pixel after bilinear upsampling, and its softmax.

    Upsampled by bands of rows: the logits of a photograph can take gigabytes.
    """
    (height, width), rows = size, logits.shape[-2]
    # Bilinear interpolation without aligned corners, first down, then across.
    position = (torch.arange(height, device=logits.device) + 0.5) * rows / height - 0.5
    position = position.clamp(0, rows - 1)
    above = position.floor().long()
    below, weight = (above + 1).clamp_max(rows - 1), (position - above)[:, None]
    band = max(1, _BAND_VALUES // (len(logits) * width))
    ids, shares = [], []
    for first in range(0, height, band):
        part = slice(first, first + band)
        values = torch.lerp(logits[:, above[part]], logits[:, below[part]], weight[part])
        values = _resize(values, (values.shape[1], width))
        found, share = classes_of(values, confidence=confidence)
        ids.append(found)
        if share is not None:
            shares.append(share)
    return np.concatenate(ids), np.concatenate(shares) if confidence else None


def classes_of(
    logits: Tensor, *, confidence: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
    """Class of every pixel of logits (K, H, W), and its softmax with ``confidence``."""
    best = logits.max(dim=0)
    if not confidence:
        return best.indices.cpu().numpy(), None
    share = (best.values - logits.logsumexp(dim=0)).exp()
    return best.indices.cpu().numpy(), share.cpu().numpy()


def _values(head: HeadSpec, output: Tensor, view: View) -> ValuePrediction:
    values = to_unit(head, _resize(output, (view.height, view.width)))
    return ValuePrediction(values, head.unit, output, head.target, view)


def to_unit(head: HeadSpec, output: Tensor) -> npt.NDArray[np.float32]:
    """Values (H, W) or (H, W, C) in the head's unit, of its output (C, H, W) on the CPU."""
    target = head.target
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (target.mean, target.std))
    values = output * std + mean
    if head.unit:
        values = values * (target.max_value * head.scale)
    array: npt.NDArray[Any] = values.permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[2] == 1 else array


def _resize(image: Tensor, size: Size) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
