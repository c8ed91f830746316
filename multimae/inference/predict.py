"""Predictions of a fine-tuned model, in their unit and at the image's resolution.

Images are resized as in evaluation, see ``ModelSpec.resize_mode``. Shapes: H and W of the region
the model sees (the centre square for ``crop``, else the full image), K classes, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.images.inputs import Inputs
from multimae.nn.network import MultiModalTransformer
from multimae.nn.tokens import Size
from multimae.plotting import Picture, to_picture, with_void
from multimae.specs.heads import HeadSpec, LinearOptions, reads_all_layers
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec


@dataclass(frozen=True)
class ClassPrediction:
    """Class probabilities of an image, sorted, the most probable first.

    Attributes:
        names: Class names.
        probabilities: (K,).
        ids: Class ids, (K,).
    """

    names: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.names[0]


@dataclass(frozen=True)
class LabelPrediction:
    """Class of every pixel.

    Attributes:
        ids: (H, W), class ids from 0.
        names: Class names by id; empty if the spec has none.
        logits: (K, h, w) at the model's resolution, without padding.
        target: Target modality.
    """

    ids: npt.NDArray[np.int64]
    names: tuple[str, ...]
    logits: Tensor
    target: Modality

    def picture(self) -> Picture:
        """Colour-coded classes, (H, W, 3)."""
        return to_picture(torch.from_numpy(self.ids + 1), with_void(self.target))

    def shares(self) -> dict[str, float]:
        """Share of the pixels by class, the largest first."""
        ids, counts = np.unique(self.ids, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {
            self.names[i] if self.names else str(i): count / self.ids.size
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
    """

    values: npt.NDArray[np.float32]
    unit: str
    normalized: Tensor
    target: Modality

    def picture(self) -> Picture:
        """(h, w, 3) at the model's resolution; scalar maps are colour-mapped."""
        return to_picture(self.normalized, self.target)


Prediction = ClassPrediction | LabelPrediction | ValuePrediction


@torch.inference_mode()
def predict(
    model: MultiModalTransformer, spec: ModelSpec, inputs: Inputs
) -> list[dict[str, Prediction]]:
    """Run all heads; return one dict per sample; see :meth:`multimae.MultiMAE.predict`."""
    if not spec.heads:
        raise ValueError(f"{spec.name} has no heads: fine-tune it first, or use reconstruct()")
    if not inputs.views:
        raise ValueError("predict() needs stored images, not tensors: call the model itself")
    predicted = model.apply_heads(inputs.x, reads_all_layers(model))
    outputs = {name: output.float().cpu() for name, output in predicted.items()}
    return [
        {head.name: _prediction(head, outputs[head.name][i], inputs, i) for head in spec.heads}
        for i in range(len(inputs))
    ]


def _prediction(head: HeadSpec, output: Tensor, inputs: Inputs, index: int) -> Prediction:
    if isinstance(head.options, LinearOptions):
        return _classes(head.target, output)
    height, width = inputs.inside[index]
    output = output[:, :height, :width]
    view = inputs.views[index]
    size = (view.height, view.width)
    if head.target.is_labels:
        logits = output[: head.target.num_classes]
        ids = _resize(logits, size).argmax(dim=0).numpy()
        return LabelPrediction(ids, head.target.class_names, logits, head.target)
    return _values(head, output, size)


def _classes(target: Modality, logits: Tensor) -> ClassPrediction:
    probabilities, order = logits.softmax(dim=0).sort(descending=True)
    names = tuple(
        target.class_names[i] if i < len(target.class_names) else str(i) for i in order.tolist()
    )
    return ClassPrediction(names, probabilities.numpy(), order.numpy())


def _values(head: HeadSpec, output: Tensor, size: Size) -> ValuePrediction:
    target = head.target
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (target.mean, target.std))
    values = _resize(output, size) * std + mean
    if head.unit:
        values = values * (target.max_value * head.scale)
    array: npt.NDArray[Any] = values.permute(1, 2, 0).numpy()
    array = array[..., 0] if array.shape[2] == 1 else array
    return ValuePrediction(array, head.unit, output, target)


def _resize(image: Tensor, size: Size) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
