"""What a fine-tuned model predicts on every subset of its inputs, against the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multimae.images.inputs import Inputs, load_inputs
from multimae.images.pixels import ImageError
from multimae.images.readers import read
from multimae.images.views import View, nearest
from multimae.inference.predict import (
    ClassPrediction,
    LabelPrediction,
    Prediction,
    ValuePrediction,
    predict,
)
from multimae.multimae import MultiMAE
from multimae.specs.heads import HeadOptions, HeadSpec, LinearOptions
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec
from tools.subset_report.scores import Matrix, Report, Score, Subset, drops, subsets
from utils.data.folders import MultiModalFolder, read_class_names
from utils.data.sets.label_maps import IGNORE, stored_target
from utils.logs.errors import UserError
from utils.training.metrics import MeanMeter, Meter, SegmentationMeter

_BLANK_NOTE = "an input that the head reads is blank where it is not given"


class _Truth(NamedTuple):
    """What a head is compared with: the row of the stored files, and the first class's id."""

    row: Modality | None
    first: int = 0


def downstream_report(
    model: MultiMAE, checkpoint: str, data: str | Path, *, limit: int | None = None
) -> Report:
    """Metrics of every head for every subset of the inputs.

    Labels: mean IoU and pixel accuracy. Whole images: accuracy, the classes being the sub-folders.
    Values: root mean square and mean absolute error, in the head's unit, where the truth is not 0.
    A modality that a head needs and that is not given is blank (0 after normalisation).

    Args:
        model: With heads.
        checkpoint: Its name, for the report.
        data: Folder with the model's inputs and the truth of its heads.
        limit: Only so many samples, spread evenly.

    Raises:
        UserError: Folders or files that do not fit the model.
    """
    spec = model.spec
    truths = {head.name: _truth(head, data) for head in spec.heads}
    stored = [truth.row for truth in truths.values() if truth.row is not None]
    folder = MultiModalFolder(data, [*spec.inputs, *stored])
    count = min(len(folder), limit or len(folder))
    places = [i * len(folder) // count for i in range(count)]
    inputs = tuple(m.name for m in spec.inputs)
    rows: dict[Subset, dict[str, Score | None]] = {}
    for subset in subsets(inputs):
        scorer = _Scorer(model, folder, truths, subset)
        for place in places:
            scorer.add(place)
        rows[subset] = scorer.scores()
    columns = tuple(next(iter(rows.values())))
    falls = frozenset(c for c in columns if c.rpartition(" ")[2] in ("rmse", "mae"))
    matrix = Matrix("downstream", "Scores of the heads", _BLANK_NOTE, columns, rows, falls)
    return Report(checkpoint, str(data), count, inputs, (matrix,), drops(matrix, inputs))


class _Scorer:
    """Meters of all heads for one subset."""

    def __init__(
        self,
        model: MultiMAE,
        folder: MultiModalFolder,
        truths: dict[str, _Truth],
        subset: Subset,
    ) -> None:
        self.model, self.folder, self.truths = model, folder, truths
        self.given = [m for m in model.spec.inputs if m.name in subset]
        needed = {
            name
            for head in model.spec.heads
            if isinstance(head.options, HeadOptions)
            for name in head.options.main_tasks
        }
        self.blank = [m for m in model.spec.inputs if m.name in needed - set(subset)]
        self.meters: dict[str, Meter] = {h.name: _meter(h) for h in model.spec.heads}

    def add(self, place: int) -> None:
        """Predict a sample and count it."""
        spec = self.model.spec
        files = {m.name: self.folder.path(place, m) for m in self.given}
        try:
            inputs = load_inputs(files, spec, self.model.global_tokens.device)
        except ImageError as err:
            raise UserError(str(err)) from err
        x = {**inputs.x, **{m.name: _blank(m, inputs, spec) for m in self.blank}}
        guess = predict(self.model, spec, dataclasses.replace(inputs, x=x))[0]
        for head in spec.heads:
            self._count(head, guess[head.name], place, inputs.views[0])

    def _count(self, head: HeadSpec, guess: Prediction, place: int, view: View) -> None:
        row, first = self.truths[head.name]
        meter = self.meters[head.name]
        if isinstance(guess, ClassPrediction) and isinstance(meter, MeanMeter):
            right = guess.name == self.folder.name(place).partition("/")[0]
            meter.update({"accuracy": torch.tensor([100.0 * right])})
            return
        if row is None:
            raise TypeError(f"head '{head.name}' has no stored truth")
        path = self.folder.path(place, row)
        try:
            stored = np.asarray(read(path, row))
        except ImageError as err:
            raise UserError(str(err)) from err
        truth = torch.from_numpy(nearest(stored, view, (view.height, view.width)).copy()).long()
        if isinstance(guess, LabelPrediction) and isinstance(meter, SegmentationMeter):
            void = (truth == IGNORE) | (truth < first)
            _check_ids(truth[~void] - first, head, path)
            target = (truth - first).masked_fill(void, IGNORE)
            meter.update(torch.from_numpy(guess.ids), target)
        elif isinstance(guess, ValuePrediction) and isinstance(meter, MeanMeter):
            _count_values(guess, truth, row, meter)

    def scores(self) -> dict[str, Score | None]:
        """Of all heads, by ``head metric``."""
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
        return MeanMeter(["accuracy"])
    if head.target.is_labels:
        return SegmentationMeter(head.target.num_classes, IGNORE)
    return MeanMeter(["square", "mae"])


def _count_values(guess: ValuePrediction, truth: Tensor, row: Modality, meter: MeanMeter) -> None:
    values = torch.from_numpy(guess.values).double()
    channels = 1 if values.ndim == 2 else values.shape[-1]
    wanted = truth.double() if truth.ndim == 2 else truth[..., :channels].double()
    scale = 1.0 if guess.unit else row.max_value
    off = values.reshape(-1) - wanted.reshape(-1) / scale
    known = (wanted.reshape(-1) != 0).double()
    meter.update({"square": off.square(), "mae": off.abs()}, known)


def _blank(m: Modality, inputs: Inputs, spec: ModelSpec) -> Tensor:
    """A batch without content for an input that is not given: zeros, or the padding class."""
    name, like = next(iter(inputs.x.items()))
    stride = next(row.stride for row in spec.inputs if row.name == name)
    size = [side * stride // m.stride for side in like.shape[-2:]]
    if m.is_labels:
        label = m.num_classes if spec.padding_class else 0
        return torch.full((len(inputs), *size), label, device=like.device)
    return torch.zeros(len(inputs), m.num_channels, *size, device=like.device)


def _truth(head: HeadSpec, data: str | Path) -> _Truth:
    """The stored files of a head's target; of label maps also the id of the first class."""
    if isinstance(head.options, LinearOptions):
        return _Truth(None)
    if not head.target.is_labels:
        return _Truth(head.target)
    names, classes = read_class_names(data), head.target.class_names
    first = int(bool(names) and len(names or ()) == head.target.num_classes + 1)
    if names and classes and names[first:] != classes:
        raise UserError(
            f"{data}: classes.json names other classes than head '{head.name}' predicts: "
            f"{_few(names)} against {_few(classes)}. Score on data with the head's classes."
        )
    return _Truth(stored_target(head.target), first)


def _check_ids(ids: Tensor, head: HeadSpec, path: Path) -> None:
    if ids.numel() and int(ids.max()) >= head.target.num_classes:
        raise UserError(
            f"{path}: class id {int(ids.max())} is beyond the {head.target.num_classes} classes of "
            f"head '{head.name}'. Score on data with the head's classes."
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
