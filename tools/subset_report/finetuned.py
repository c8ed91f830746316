"""Task metrics of a fine-tuned model on every subset of its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multimae.images.folders import MultiModalFolder, read_class_names, spread_indices
from multimae.images.inputs import Inputs, load_inputs
from multimae.images.pixels import ImageError, check_same_view
from multimae.images.views import View, nearest
from multimae.inference.meters import MeanMeter, Meter
from multimae.inference.metrics import SegmentationMeter
from multimae.inference.predict import (
    ClassPrediction,
    LabelPrediction,
    Prediction,
    ValuePrediction,
    predict,
)
from multimae.inference.truth import IGNORE, stored_target
from multimae.multimae import MultiMAE
from multimae.specs.errors import UserError
from multimae.specs.heads import MM_PER_M, HeadOptions, HeadSpec, LinearOptions
from multimae.specs.label_map import mapped_names
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec
from tools.subset_report.scores import Matrix, Report, Score, Subset, drops, subsets

_BLANK_NOTE = "a removed input that a head reads is replaced by a blank one"


class _Truth(NamedTuple):
    """Ground truth of a head: the modality of the stored files, and the id of the first class."""

    modality: Modality | None
    first: int = 0


def downstream_report(
    model: MultiMAE, checkpoint: str, data: str | Path, *, limit: int | None = None
) -> Report:
    """Compute the metrics of every head for every subset of the inputs.

    Label maps: mean IoU and pixel accuracy. Classification: accuracy, with sub-folders as classes.
    Dense values: RMSE and MAE in the head's unit, where the ground truth is not 0. A modality that
    a head needs but the subset lacks is blank (0 after normalisation).

    Args:
        model: A model with heads.
        checkpoint: File name for the report.
        data: Data folder with the model's inputs and the ground truth of its heads.
        limit: Maximum number of samples, evenly spaced.

    Raises:
        UserError: Files do not fit the model.
    """
    spec = model.spec
    for head in spec.heads:
        _meter(head)  # fails early
    truths = {head.name: _truth(head, data) for head in spec.heads}
    stored = [truth.modality for truth in truths.values() if truth.modality is not None]
    folder = MultiModalFolder(data, [*spec.inputs, *stored])
    indices = spread_indices(len(folder), limit or len(folder))
    _check_class_folders(spec, folder, indices)
    inputs = tuple(m.name for m in spec.inputs)
    rows: dict[Subset, dict[str, Score | None]] = {}
    for subset in subsets(inputs):
        scorer = _Scorer(model, folder, truths, subset)
        for index in indices:
            scorer.add(index)
        rows[subset] = scorer.scores()
    columns = tuple(next(iter(rows.values())))
    falls = frozenset(c for c in columns if c.rpartition(" ")[2] in ("rmse", "mae"))
    matrix = Matrix("downstream", "Scores of the heads", _BLANK_NOTE, columns, rows, falls)
    return Report(checkpoint, str(data), len(indices), inputs, (matrix,), drops(matrix, inputs))


def _check_class_folders(spec: ModelSpec, folder: MultiModalFolder, indices: Sequence[int]) -> None:
    """Raise a UserError if sub-folders are no classes of a classification head."""
    for head in spec.heads:
        known = set(head.target.class_names)
        if not isinstance(head.options, LinearOptions) or not known:
            continue
        names = sorted({folder.name(i).partition("/")[0] for i in indices} - known)
        if names:
            raise UserError(
                f"{folder.root}: the sub-folder '{names[0]}' is no class of head '{head.name}' "
                f"({_few(head.target.class_names)}). Labels in a CSV file are not reported by "
                "subset: use --eval of run_finetuning_cls.py with --label_file."
            )


class _Scorer:
    """Metrics of all heads for one subset."""

    def __init__(
        self,
        model: MultiMAE,
        folder: MultiModalFolder,
        truths: dict[str, _Truth],
        subset: Subset,
    ) -> None:
        self.model, self.folder, self.truths = model, folder, truths
        self.inputs = [m for m in model.spec.inputs if m.name in subset]
        needed = {
            name
            for head in model.spec.heads
            if isinstance(head.options, HeadOptions)
            for name in head.options.main_tasks
        }
        self.blank = [m for m in model.spec.inputs if m.name in needed - set(subset)]
        self.meters: dict[str, Meter] = {h.name: _meter(h) for h in model.spec.heads}

    def add(self, index: int) -> None:
        """Predict a sample and update the metrics."""
        spec = self.model.spec
        try:
            images = {m.name: self.folder.read(index, m) for m in self.inputs}
            check_same_view(images, self.folder.files(index))
        except ImageError as err:
            raise UserError(str(err)) from err
        inputs = load_inputs(images, spec, self.model.global_tokens.device)
        x = {**inputs.x, **{m.name: _blank(m, inputs, spec) for m in self.blank}}
        predictions = predict(self.model, spec, dataclasses.replace(inputs, x=x))[0]
        for head in spec.heads:
            self._update(head, predictions[head.name], index, inputs.views[0])

    def _update(self, head: HeadSpec, pred: Prediction, index: int, view: View) -> None:
        modality, first = self.truths[head.name]
        meter = self.meters[head.name]
        if isinstance(pred, ClassPrediction) and isinstance(meter, MeanMeter):
            correct = pred.name == self.folder.name(index).partition("/")[0]
            meter.update({"accuracy": torch.tensor([100.0 * correct])})
            return
        if modality is None:
            raise TypeError(f"head '{head.name}' has no stored ground truth")
        try:
            stored = np.asarray(self.folder.read(index, modality))
        except ImageError as err:
            raise UserError(str(err)) from err
        truth = torch.from_numpy(nearest(stored, view, (view.height, view.width)).copy())
        if isinstance(pred, LabelPrediction) and isinstance(meter, SegmentationMeter):
            truth = truth.long()
            void = (truth == IGNORE) | (truth < first)
            _check_ids(truth[~void] - first, head, Path(str(self.folder.path(index, modality))))
            target = (truth - first).masked_fill(void, IGNORE)
            meter.update(torch.from_numpy(pred.ids), target)
        elif isinstance(pred, ValuePrediction) and isinstance(meter, MeanMeter):
            _update_values(pred, truth, head, meter)

    def scores(self) -> dict[str, Score | None]:
        """Scores keyed by ``head metric``."""
        out: dict[str, Score | None] = {}
        for name, meter in self.meters.items():
            values = meter.compute()
            values.pop("mean_accuracy", None)
            if "square" in values:
                values = {"rmse": values["square"] ** 0.5, "mae": values["mae"]}
            if "pixel_accuracy" in values:
                values["pixel_accuracy"] *= 100
            out |= {f"{name} {metric}": Score(value) for metric, value in values.items()}
        return out


def _meter(head: HeadSpec) -> Meter:
    if isinstance(head.options, LinearOptions):
        if head.options.predicts != "class":
            raise UserError(
                f"head '{head.name}' predicts label_kind {head.options.predicts}: only one class "
                "per image is scored by subset. Use --eval of run_finetuning_cls.py."
            )
        return MeanMeter(["accuracy"])
    if head.target.is_labels:
        return SegmentationMeter(head.target.num_classes, IGNORE)
    return MeanMeter(["square", "mae"])


def _update_values(pred: ValuePrediction, truth: Tensor, head: HeadSpec, meter: MeanMeter) -> None:
    """Count errors: depth in mm, as in the logs; values without a unit from 0 to 1."""
    values = torch.from_numpy(pred.values).double()
    channels = 1 if values.ndim == 2 else values.shape[-1]
    target = truth.double() if truth.ndim == 2 else truth[..., :channels].double()
    scale = head.scale if pred.unit else 1 / head.target.max_value
    error = (values.reshape(-1) - target.reshape(-1) * scale) * (MM_PER_M if pred.unit else 1.0)
    valid = (target.isfinite() & (target != 0)).reshape(-1)
    if head.target.no_data is not None:
        valid &= (target != head.target.no_data).reshape(-1)
    meter.update({"square": error.square(), "mae": error.abs()}, valid)


def _blank(m: Modality, inputs: Inputs, spec: ModelSpec) -> Tensor:
    """A blank batch of a removed input: zeros, or the padding class."""
    name, like = next(iter(inputs.x.items()))
    stride = next(other.stride for other in spec.inputs if other.name == name)
    size = [side * stride // m.stride for side in like.shape[-2:]]
    if m.is_labels:
        label = m.num_classes if spec.padding_class else 0
        return torch.full((len(inputs), *size), label, device=like.device)
    return torch.zeros(len(inputs), m.num_channels, *size, device=like.device)


def _truth(head: HeadSpec, data: str | Path) -> _Truth:
    """Find the stored files of a head's target, and the id of a label map's first class."""
    if isinstance(head.options, LinearOptions):
        return _Truth(None)
    if not head.target.is_labels:
        return _Truth(head.target)
    names, classes = read_class_names(data), head.target.class_names
    names = mapped_names(names or (), head.target.label_map)
    first = int(bool(names) and len(names or ()) == head.target.num_classes + 1)
    if names and classes and names[first:] != classes:
        raise UserError(
            f"{data}: the classes in classes.json differ from those of head '{head.name}': "
            f"{_few(names)} against {_few(classes)}. Use data with the head's classes."
        )
    return _Truth(stored_target(head.target), first)


def _check_ids(ids: Tensor, head: HeadSpec, path: Path) -> None:
    if ids.numel() and int(ids.max()) >= head.target.num_classes:
        raise UserError(
            f"{path}: class id {int(ids.max())} is not in 0..{head.target.num_classes - 1}, the "
            f"classes of head '{head.name}'. Use data with the head's classes."
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
