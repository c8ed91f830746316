"""The files of the truth of predictions, matched with samples by name, and their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multimae.images.folders import MultiModalFolder, read_class_names, spread_indices
from multimae.images.inputs import Framed
from multimae.images.pixels import ImageError, Pixels, size_of
from multimae.inference.label_files import read_label_file
from multimae.inference.prediction.outputs import RECORD_FILE
from multimae.inference.prediction.samples import open_folder
from multimae.inference.table_metrics import MultiLabelScores, NumberMeter, NumberScores
from multimae.inference.truth import (
    BLURRED,
    MASK_VALID,
    ZBUFFER,
    ClassScores,
    DepthScores,
    L1Scores,
    LabelScores,
    Scores,
    blur_edges,
    class_labels,
    depth_problem,
    first_id_is_void,
    label_problem,
    mask_modality,
    normalized_target,
    stored_target,
    stored_zbuffer,
    valid_depth,
    valid_taskonomy,
    validity_mask,
    with_void,
)
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.heads import HeadSpec, LabelKind, LinearOptions
from multimae.specs.label_map import mapped_names
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec

Outputs = Mapping[str, Tensor]
_CHECKED = 16  # files of true depth whose unit is checked


class Truth(ABC):
    """Truth of the samples that have it.

    Attributes:
        modalities: Modalities of its files, to be framed with the inputs.
        scores: Metrics so far.
        zero_is_void: Whether stored label 0 is void; ``None`` where truth is no label map.
        by_pixel: Whether pixels are scored one by one, so that an image can be scored in parts.
    """

    by_pixel = False
    modalities: tuple[Modality, ...] = ()
    zero_is_void: bool | None = None
    scores: Scores

    def warnings(self) -> Iterator[str]:
        """Lines about truth that is unlikely to be the model's."""
        yield from ()

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether a sample has a truth."""

    def read(self, name: str, size: tuple[int, int]) -> dict[str, Pixels]:
        """Pixels of the truth of a sample by modality.

        Args:
            name: Of the sample, which must have a truth.
            size: ``(H, W)`` of its largest input.

        Raises:
            ImageError: A file is bad, or not a truth of the model's classes.
        """
        return {}

    @abstractmethod
    def update(self, outputs: Outputs, samples: Framed, names: Sequence[str]) -> None:
        """Count the outputs of the heads for samples with their truth, on the outputs' device."""


def open_truth(
    root: Path, spec: ModelSpec, device: torch.device, *, zero_is_void: bool | None, mask: bool
) -> Truth:
    """Find the truth of a model's heads.

    Args:
        root: Data root, or a folder of the truth's files; of classification, one folder per class,
            or a CSV file of labels.
        spec: Spec of the model.
        device: Device of the scores.
        zero_is_void: Stored label 0 is void; ``None``: as the weights or ``classes.json`` say.
        mask: Count pixels where ``mask_valid`` is set.

    Raises:
        UserError: No truth there.
    """
    is_table = root.is_file()
    if not is_table and not root.is_dir():
        raise UserError(f"--truth {root} does not exist.")
    root, head = root.resolve(), spec.heads[0]
    if isinstance(head.options, LinearOptions):
        if is_table:
            return _LabelRows(root, head, head.options.predicts, device)
        if head.options.predicts != "class":
            raise UserError(
                f"--truth {root} is a folder: the head '{head.name}' predicts label_kind "
                f"{head.options.predicts}, whose truth is the CSV file of --label_file."
            )
        return _Classes(root, spec, head, device)
    if is_table:
        raise UserError(f"--truth {root} is a file: '{head.name}' needs a folder of images.")
    if head.target.is_labels:
        if any((folder / RECORD_FILE).is_file() for folder in (root, root.parent)):
            # Maps that predict wrote hold class ids, not what the label map maps.
            head = replace(head, target=replace(head.target, label_map=()))
        if zero_is_void is None:
            zero_is_void = _zero_is_void(root, head)
        return _Labels(root, head, device, zero_is_void)
    if head.unit:
        return _Depth(root, head, device, mask)
    return _Taskonomy(root, spec.heads, device)


def _zero_is_void(root: Path, head: HeadSpec) -> bool:
    """Whether label 0 is void, as the weights say, else as the names in ``classes.json`` do.

    Raises:
        UserError: Neither tells.
    """
    known = first_id_is_void(head)
    if known is not None:
        return known
    names = read_class_names(root) or read_class_names(root.parent) or ()
    names = mapped_names(names, head.target.label_map)
    for first in (0, 1):
        if len(names) == head.target.num_classes + first and head.target.class_names in (
            (),
            names[first:],
        ):
            return bool(first)
    raise UserError(
        "the weights do not say whether label 0 is void: set --seg_reduce_zero_label if it is and "
        "classes count from 1, else --no_seg_reduce_zero_label."
    )


class _Files(Truth):
    """Truth in image files."""

    def __init__(self, root: Path, names: Sequence[str], modalities: Sequence[Modality]) -> None:
        """Index the files.

        Args:
            root: Data root, or the folder of the truth.
            names: Of the heads, whose folder is also tried.
            modalities: What to read; files of the first are the truth.
        """
        first = modalities[0]
        if not (root / first.data_folder).is_dir():
            named = [name for name in names if (root / name).is_dir()]
            if named:
                first = replace(first, folder=named[0])
            else:
                first, root = replace(first, folder=root.name), root.parent
        self.modalities = (first, *modalities[1:])
        self._folder: MultiModalFolder = open_folder(root, self.modalities)
        self._index = {self._folder.name(i): i for i in range(len(self._folder))}

    def has(self, name: str) -> bool:
        return name in self._index

    def read(self, name: str, size: tuple[int, int]) -> dict[str, Pixels]:
        index = self._index[name]
        pixels = {m.name: self._folder.read(index, m) for m in self.modalities}
        if MASK_VALID in pixels:
            path = self._folder.path(index, mask_modality())
            pixels[MASK_VALID] = validity_mask(pixels[MASK_VALID], path)
        return pixels


class _Labels(_Files):
    """Label maps."""

    by_pixel = True
    scores: LabelScores

    def __init__(
        self, root: Path, head: HeadSpec, device: torch.device, zero_is_void: bool
    ) -> None:
        self._head, self.zero_is_void = head, zero_is_void
        target = replace(stored_target(head.target), name=f"true_{head.target.name}")
        target = replace(target, folder=head.target.data_folder)
        super().__init__(root, [head.name], [target])
        classes = head.target.num_classes
        self.scores = LabelScores(classes, head.channels > classes, device)

    def read(self, name: str, size: tuple[int, int]) -> dict[str, Pixels]:
        pixels = super().read(name, size)
        (target,) = self.modalities
        pixels[target.name] = labels = with_void(np.asarray(pixels[target.name]), target)
        path, classes = self._folder.path(self._index[name], target), self._head.target.num_classes
        largest = max(size, size_of(labels))
        problem = label_problem(labels, path, largest, classes, bool(self.zero_is_void))
        if problem:
            raise ImageError(problem)
        return pixels

    def update(self, outputs: Outputs, samples: Framed, names: Sequence[str]) -> None:
        logits = outputs[self._head.name]
        stored = samples.images[self.modalities[0].name].to(logits.device)
        inside = samples.mask.to(logits.device)
        self.scores.update(logits, class_labels(stored, inside, bool(self.zero_is_void)), ~inside)


class _Depth(_Files):
    """Depth maps."""

    by_pixel = True
    scores: DepthScores

    def __init__(self, root: Path, head: HeadSpec, device: torch.device, mask: bool) -> None:
        self._head = head
        target = replace(head.target, name=f"true_{head.target.name}")
        target = replace(target, folder=head.target.data_folder)
        super().__init__(root, [head.name], [target, *([mask_modality()] if mask else [])])
        self.scores = DepthScores(head.target, head.scale, device)

    def warnings(self) -> Iterator[str]:
        """Whether depth has another unit than the weights'."""
        target, low, high = self.modalities[0], np.inf, 0.0
        for i in spread_indices(len(self._folder), _CHECKED):
            with suppress(ImageError):  # reported when it is scored
                depth = np.asarray(self._folder.read(i, target), float)
                depth = depth[(depth > 0) & np.isfinite(depth) & (depth != target.no_data)]
                low = float(depth.min(initial=low))
                high = float(depth.max(initial=high))
        problem = depth_problem((low, high), self._head.scale) if high else ""
        if problem:
            yield f"warning: the true depth of {self._folder.root} {problem}, as the weights say"

    def update(self, outputs: Outputs, samples: Framed, names: Sequence[str]) -> None:
        output = outputs[self._head.name]
        images = {m.name: samples.images[m.name].to(output.device) for m in self.modalities}
        raw = images[self.modalities[0].name]
        valid = valid_depth(raw, self.modalities[0], images.get(MASK_VALID))
        self.scores.update(output, raw, valid)


class _Taskonomy(_Files):
    """Truth of Taskonomy's tasks and the pixels that are valid for all of them."""

    scores: L1Scores

    def __init__(self, root: Path, heads: Sequence[HeadSpec], device: torch.device) -> None:
        self._heads = [h for h in heads if (root / h.target.data_folder).is_dir()]
        if not self._heads:
            raise UserError(
                f"--truth {root} has no folder of a task: it must hold "
                f"{', '.join(h.target.data_folder for h in heads)}, and {MASK_VALID} or {ZBUFFER}."
            )
        masked = (root / MASK_VALID).is_dir()
        self._valid = (
            mask_modality()
            if masked
            else replace(stored_zbuffer(), name=f"valid_{ZBUFFER}", folder=ZBUFFER)
        )
        self._rows = {h.name: _stored_row(h) for h in self._heads}
        super().__init__(root, [], [*self._rows.values(), self._valid])
        self.scores = L1Scores([h.name for h in self._heads], device)

    def update(self, outputs: Outputs, samples: Framed, names: Sequence[str]) -> None:
        device = next(iter(outputs.values())).device
        images = {m.name: samples.images[m.name].to(device) for m in self.modalities}
        mask = images[MASK_VALID] if self._valid.name == MASK_VALID else None
        valid = valid_taskonomy(images.get(self._valid.name), mask)
        truth = {}
        for head in self._heads:
            row = self._rows[head.name]
            truth[head.name] = normalized_target(images[row.name], row, head.target)
        if BLURRED in truth:
            truth[BLURRED] = blur_edges(truth[BLURRED])
        self.scores.update(outputs, truth, valid)


def _stored_row(head: HeadSpec) -> Modality:
    """Modality of the files of a head, which may have more channels than are predicted."""
    target, channels = head.target, head.stored_channels or head.target.num_channels
    more = channels - target.num_channels
    mean, std = (
        values if len(values) == 1 else (*values, *(fill,) * more)
        for values, fill in ((target.mean, 0.0), (target.std, 1.0))
    )
    return replace(
        target,
        name=f"true_{target.name}",
        folder=target.data_folder,
        num_channels=channels,
        mean=mean,
        std=std,
    )


class _LabelRows(Truth):
    """Rows of a CSV file: a class, several labels or numbers."""

    def __init__(self, path: Path, head: HeadSpec, kind: LabelKind, device: torch.device) -> None:
        self._labels = read_label_file(path, kind, head.target.class_names or None)
        self._kind, self._head, target = kind, head, head.target
        self.scores: Scores
        if kind == "number":
            meter = NumberMeter(target.class_names, target.mean, target.std, device)
            self.scores = NumberScores(meter)
        elif kind == "multi":
            self.scores = MultiLabelScores(self._labels.rows, head.channels, device)
        else:
            self.scores = ClassScores(device)

    def has(self, name: str) -> bool:
        return name in self._labels.rows

    def update(self, outputs: Outputs, samples: Framed, names: Sequence[str]) -> None:
        output = outputs[self._head.name]
        targets = self._labels.targets(names, output.device)
        if isinstance(self.scores, MultiLabelScores):
            self.scores.update(names, output, targets)
        elif isinstance(self.scores, ClassScores):
            self.scores.update(output, targets)
        elif isinstance(self.scores, NumberScores):
            mean, std = (
                torch.tensor(values, device=output.device)
                for values in (self._head.target.mean, self._head.target.std)
            )
            self.scores.update(output, (targets - mean) / std)


class _Classes(Truth):
    """Class folders."""

    scores: ClassScores

    def __init__(self, root: Path, spec: ModelSpec, head: HeadSpec, device: torch.device) -> None:
        rows = [m for m in spec.inputs if (root / m.data_folder).is_dir()]
        row = rows[0] if rows else replace(spec.inputs[0], folder=root.name)
        folder = open_folder(root if rows else root.parent, [row])
        known = {name: i for i, name in enumerate(head.target.class_names)}
        self._ids: dict[str, int] = {}
        twice: set[str] = set()
        unknown: set[str] = set()
        for i in range(len(folder)):
            name = folder.name(i)
            kind, _, rest = name.partition("/")
            if not rest or kind not in known:
                unknown.add(kind if rest else name)
                continue
            self._ids[name] = known[kind]
            if self._ids.setdefault(rest, known[kind]) != known[kind]:
                twice.add(rest)
        if unknown:
            raise UserError(
                f"--truth {root} has folders that are no class of the model:\n"
                f"{bullet_list(sorted(unknown))}\nIts classes are {', '.join(list(known)[:20])}."
            )
        for name in twice:
            del self._ids[name]
        self.scores = ClassScores(device)

    def has(self, name: str) -> bool:
        return name in self._ids

    def update(self, outputs: Outputs, samples: Framed, names: Sequence[str]) -> None:
        (logits,) = outputs.values()
        labels = torch.tensor([self._ids[name] for name in names], device=logits.device)
        self.scores.update(logits, labels)
