"""A model that turns framed samples into predictions of every head.

Loader processes call :meth:`Predictor.frame`, the main process :meth:`Predictor.predict`. Another
way to predict an image, such as by tiles, is another :class:`Predictor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.images.inputs import Framed, Inputs, batch_inputs, frame
from multimae.images.pixels import Pixels
from multimae.images.views import View
from multimae.inference.predict import (
    LabelPrediction,
    ValuePrediction,
    forward_of,
    pad_batch,
    to_predictions,
)
from multimae.inference.prediction.outputs import Outcome
from multimae.inference.reconstruct import Reconstruction, reconstruct
from multimae.inference.truth import MASK_THRESHOLD, MASK_VALID
from multimae.multimae import MultiMAE
from multimae.nn.network import autocast
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec


class Predictor:
    """A model that predicts samples framed as in evaluation."""

    def __init__(
        self,
        model: MultiMAE,
        modalities: Sequence[Modality],
        device: torch.device,
        dtype: torch.dtype | None = None,
        *,
        confidence: bool = False,
        tta: str = "",
    ) -> None:
        """Take a model.

        Args:
            model: On ``device``.
            modalities: Inputs that samples have.
            device: Device of the model.
            dtype: Autocast type; ``None`` is float32.
            confidence: Compute the confidence of labels.
            tta: Average over it, see :class:`multimae.inference.tiling.tta.Augmentation`.
        """
        if tta:
            from multimae.inference.tiling.tta import Augmentation

            self.augmentation: Augmentation | None = Augmentation.parse(tta)
        else:
            self.augmentation = None
        self.model, self.spec, self.modalities = model, model.spec, tuple(modalities)
        self.device, self.dtype, self.confidence = device, dtype, confidence

    def frame(self, pixels: Mapping[str, Pixels], truth: Sequence[Modality] = ()) -> Framed:
        """Bring one sample to the model's size, in a loader process.

        Args:
            pixels: Stored pixels of the inputs and the truth.
            truth: Modalities of the truth, and of the map of valid pixels.

        Raises:
            ImageError: The images do not show the same view.
        """
        return frame(pixels, [*self.modalities, *truth], self.spec)

    def predict(
        self, samples: Framed, batch_size: int = 0
    ) -> tuple[dict[str, Tensor], list[dict[str, Outcome]]]:
        """Predict a batch.

        Args:
            samples: Stacked samples.
            batch_size: The batch is padded to it, as kernels, and with them the last digits, depend
                on the batch size.

        Returns:
            Outputs of the heads for the samples, float32 on the device, and predictions per sample.
        """
        inputs = self._inputs(samples)
        x = {name: pad_batch(value, batch_size) for name, value in inputs.x.items()}
        outputs = self._outputs(x)
        outputs = {name: output[: len(samples)] for name, output in outputs.items()}
        predictions = to_predictions(self.spec, outputs, inputs, confidence=self.confidence)
        return outputs, [dict(p) for p in predictions]

    def _outputs(self, x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        forward = forward_of(self.model, self.dtype)
        if self.augmentation is None:
            return forward(x)
        from multimae.inference.tiling.tta import augmented_outputs

        return augmented_outputs(forward, x, self.spec, self.augmentation)

    def _inputs(self, samples: Framed) -> Inputs:
        mask = samples.images.get(MASK_VALID)
        valid = None if mask is None else mask[:, 0] > MASK_THRESHOLD
        return batch_inputs(samples, self.modalities, self.spec, self.device, valid)


class Reconstructor(Predictor):
    """A pre-trained model that predicts all outputs from some patches, sample by sample."""

    visible, seed = "1/6", 0

    def predict(
        self, samples: Framed, batch_size: int = 0
    ) -> tuple[dict[str, Tensor], list[dict[str, Outcome]]]:
        """Reconstruct a batch; there are no outputs of heads."""
        inputs = self._inputs(samples)
        results = []
        for i in range(len(samples)):
            one = Inputs(
                {name: x[i : i + 1] for name, x in inputs.x.items()},
                {name: x[i : i + 1] for name, x in inputs.raw.items()},
                inputs.views[i : i + 1],
                inputs.inside[i : i + 1],
            )
            total = self.model.layout_of(one.x).num_task_tokens
            with autocast(self.device.type, self.dtype):
                made = reconstruct(
                    self.model, self.spec, one, visible_patches(self.visible, total), seed=self.seed
                )
            results.append(self._outcomes(made, one))
        return {}, results

    def _outcomes(self, made: Reconstruction, inputs: Inputs) -> dict[str, Outcome]:
        (view,), (inside,) = inputs.views, inputs.inside
        outcomes: dict[str, Outcome] = {"reconstruction": made.grid()}
        for m in reconstructed(self.spec):
            size = (inside[0] // m.stride, inside[1] // m.stride)
            values = torch.from_numpy(made.values(m.name)[: size[0], : size[1]])
            prediction = made.predictions[m.name][0]
            if m.is_labels:
                ids = _resized(values[None].float(), view, "nearest-exact")[0].long().numpy()
                outcomes[m.name] = LabelPrediction(ids, m.class_names, prediction, m, view)
            else:
                array = _resized(values.permute(2, 0, 1), view, "bilinear").permute(1, 2, 0).numpy()
                array = array[..., 0] if array.shape[2] == 1 else array
                outcomes[m.name] = ValuePrediction(array, "", prediction, m, view)
        return outcomes


def reconstructed(spec: ModelSpec) -> list[Modality]:
    """Outputs of a pre-trained model, each kind of data once."""
    names = {m.name for m in spec.outputs}
    return [m for m in spec.outputs if m.source is None or m.source not in names]


def visible_patches(text: str, total: int) -> int:
    """Number of visible patches of ``total``: a number, a share (``1/6``, ``0.2``), or ``all``.

    Raises:
        UserError: Not one of these, or not in ``1..total``.
    """
    try:
        first, slash, second = text.partition("/")
        share = total if text == "all" else float(first) / float(second) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        share = 0.0
    count = int(share) if share >= 1 else round(share * total)
    if not 1 <= count <= total:
        raise UserError(
            f"--visible {text}: a number from 1 to {total}, a share such as 1/6, or all."
        )
    return count


def _resized(x: Tensor, view: View, mode: str) -> Tensor:
    size = (view.height, view.width)
    aligned = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(x[None].float(), size=size, mode=mode, **aligned)[0]
