"""Warnings about labels and values in the samples that are checked before training."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multimae.images.pack import AnyPath
from multimae.images.pixels import range_problems
from multimae.specs.errors import UserError
from multimae.specs.modalities import VOID_NAMES, Modality
from utils.data.dataset import MultiModalDataset

MAX_NAMES = 20
_BYTE, _CLEARLY_WIDE = 255, 2048


@dataclass(frozen=True)
class LabelTable:
    """Ids of a label modality in the checked samples of a data set.

    Attributes:
        name: The modality.
        root: Data root.
        counts: Pixels by stored id.
        classes: Stored ids that are classes.
        class_names: By stored id, void included; empty if unknown.
        zero_is_void: ``seg_reduce_zero_label``; ``None`` where there is no such option.
    """

    name: str
    root: AnyPath
    counts: npt.NDArray[np.int64]
    classes: range
    class_names: tuple[str, ...] = ()
    zero_is_void: bool | None = None

    def lines(self) -> Iterator[str]:
        """The table: id, name and share of pixels of every id that occurs; then the warnings."""
        entries = [
            f"{i} {self._title(i)}: {self.share(i)}" for i in np.flatnonzero(self.counts).tolist()
        ]
        yield f"labels '{self.name}' of {self.root}, share of pixels in the checked samples:"
        yield from textwrap.wrap(
            "; ".join(entries), 110, initial_indent="  ", subsequent_indent="  "
        )
        yield from self.warnings()

    def warnings(self) -> Iterator[str]:
        """Classes that do not occur, and names that contradict which ids are void."""
        absent = [i for i in self.classes if not self.counts[i]]
        if absent:
            shown = ", ".join(f"{i} {self._title(i)}".strip() for i in absent[:MAX_NAMES])
            more = f" and {len(absent) - MAX_NAMES} more" if len(absent) > MAX_NAMES else ""
            yield (
                f"warning: labels '{self.name}': {len(absent)} of {len(self.classes)} classes do "
                f"not occur in the checked samples of {self.root}: {shown}{more}. Check "
                "num_classes and the ids of the files."
            )
        named = self.class_names[0] if self.class_names else None
        is_void = named is not None and named.strip().lower() in VOID_NAMES
        half = 2 * self.counts[0] > self.counts.sum()
        if self.zero_is_void and (not is_void if named is not None else half):
            yield (
                f"warning: seg_reduce_zero_label makes id 0{f' ({named})' if named else ''} void, "
                f"{self.share(0)} of the pixels: it is neither learned nor scored. If it is a "
                "class, drop seg_reduce_zero_label."
            )
        elif self.zero_is_void is False and is_void and 0 in self.classes:
            yield (
                f"warning: id 0 is named '{named}' and is learned and scored as a class. If it is "
                "void, set seg_reduce_zero_label and leave it out of num_classes."
            )

    def _title(self, i: int) -> str:
        name = self.class_names[i] if i < len(self.class_names) else ""
        return name if i in self.classes else f"{name} (void)".strip()

    def share(self, i: int) -> str:
        """Share of the pixels with stored id ``i``."""
        return f"{100 * self.counts[i] / max(1, self.counts.sum()):.2f} %"


def label_tables(dataset: MultiModalDataset) -> list[LabelTable]:
    """Tables of all label modalities of a checked data set."""
    return [
        LabelTable(
            m.name,
            dataset.folder.root,
            dataset.label_counts[m.name],
            range(m.num_classes),
            m.class_names,
        )
        for m in dataset.folder.modalities
        if m.is_labels and m.name in dataset.label_counts
    ]


def overlap_warnings(train: MultiModalDataset, scored: MultiModalDataset) -> Iterator[str]:
    """Report evaluation samples that are training samples, of the same data root."""
    root = train.folder.root
    if os.path.realpath(str(root)) != os.path.realpath(str(scored.folder.root)):
        return
    names = {train.name(i) for i in range(len(train))}
    shared = sum(scored.name(i) in names for i in range(len(scored)))
    if shared:
        yield (
            f"warning: {shared} of {len(scored)} evaluation samples are training samples, too "
            f"({root}): the metrics do not tell how the model does on other images."
        )


def range_warnings(
    dataset: MultiModalDataset,
    modalities: Sequence[Modality],
    explicit: Mapping[str, Collection[str]],
) -> Iterator[str]:
    """Report scalar maps whose checked values are nearly constant, or huge, to the model.

    Args:
        dataset: Checked samples.
        modalities: Modalities to report.
        explicit: Fields that the user set, by modality.

    Raises:
        UserError: Values of 8 bits in a modality of 16, whose ``max_value`` is not explicit.
    """
    for m in modalities:
        tops = np.asarray(dataset.tops.get(m.name, ()))
        where = f"warning: modality '{m.name}' of {dataset.folder.root}:"
        if m.name not in dataset.value_ranges:
            if tops.size and m.storage == "integer":
                yield f"{where} all values of the checked samples are 0 or no_data."
            continue
        narrow = int(((tops > 0) & (tops <= _BYTE)).sum())
        if m.storage == "integer" and narrow and np.median(tops) > _CLEARLY_WIDE:
            yield (
                f"{where} {narrow} of {len(tops)} checked samples have no value above {_BYTE}, "
                f"and most have values above {_CLEARLY_WIDE}. If their files have 8 bits, "
                "store them as the others; tools/check_dataset.py names them."
            )
        low, high = dataset.value_ranges[m.name]
        for text in range_problems(m, low, high):
            text = f"modality '{m.name}' of {dataset.folder.root}: {text}"
            if m.storage == "integer" and "max_value" not in explicit.get(m.name, ()):
                raise UserError(f"{text} To keep max_value, declare it under `modalities:`.")
            yield f"warning: {text}"
