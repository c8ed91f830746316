"""The configuration of ``run_finetuning_semseg.py``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from multimae.nn.tokens import Sides
from multimae.specs.label_map import parse_label_map, targets_of
from multimae.specs.modalities import VOID, Modality, ModalityTable
from utils.config.fields import option
from utils.config.finetune_options import (
    DenseFinetuneConfig,
    DenseModelOptions,
    FinetuneDataOptions,
    class_weights_option,
    flip_problems,
    weight_problems,
)
from utils.config.options import RuntimeOptions, split_names

# A pseudo-labelled input is stored under the adapter of what it imitates (SPEC section 6).
PSEUDO_INPUTS = {"pseudo_semseg": "semseg"}
TARGET = "segmentation"
SegLoss = Literal["ce", "dice", "focal"]
MASK_VALID = "mask_valid"


@dataclass(frozen=True)
class SemsegDataOptions(FinetuneDataOptions):
    """Data."""

    in_domains: str = option("rgb", "Inputs, joined by '-'; also pseudo_semseg")
    standardize_depth: bool = option(
        True, "Standardise depth per image, by the mean and variance of its middle 80 %"
    )
    depth_stats: Literal["valid", "all"] = option(
        "valid",
        "Pixels in the statistics of depth; all: invalid and padded ones, too, as published",
    )
    use_mask_valid: bool = option(
        False, "Read mask_valid (255 = depth is valid); other depth becomes 0", off="no_mask_valid"
    )
    load_pseudo_depth: bool = option(False, "Read depth from the folder pseudo_depth")
    num_classes: int = option(150, "Classes of the label maps, void aside", within="[2, 254]")
    dataset_name: str = option("ade20k", "Name of the data set, for logs", on_resume="free")
    seg_reduce_zero_label: bool = option(False, "Label 0 is void; the others count from 1")
    seg_use_void_label: bool = option(
        False, "Learn padding as one more class, which is never scored; void is ignored"
    )
    aug_name: Literal["simple"] = option("simple", "Augmentation")
    label_folder: str = option("semseg", "Folder of the label maps")
    label_suffix: str = option("", "Ending of the label maps' names, such as _gtFine_labelIds")
    label_map: Mapping[str, Any] = option(
        dict,
        "Stored ids or colours of the label maps and their classes: {7: 0, default: 255}, "
        "{'#804080': 0}; 255: void",
    )
    class_weights: tuple[str, ...] | None = class_weights_option()
    seg_loss: str = option("ce", "Sum of losses, joined by '+': ce, dice, focal")
    focal_gamma: float = option(2.0, "Exponent of the focal loss", within="[0, inf)")
    hflip: float = option(0.5, "Probability of a left-right flip", within="[0, 1]")
    vflip: float = option(0.0, "Probability of an upside-down flip", within="[0, 1]")
    scale_jitter: tuple[float, float] = option(
        (0.1, 2.0), "Range of the factor on the size of training images", within="(0, inf)"
    )

    @property
    def losses(self) -> tuple[SegLoss, ...]:
        """Names of the losses."""
        return cast(tuple[SegLoss, ...], tuple(self.seg_loss.split("+")))

    @property
    def in_names(self) -> tuple[str, ...]:
        """Names of the input adapters."""
        return tuple(PSEUDO_INPUTS.get(name, name) for name in split_names(self.in_domains))

    def table(self) -> ModalityTable:
        """The table, with pseudo labels and pseudo depth read from their folders."""
        table = super().table()
        for folder, name in PSEUDO_INPUTS.items():
            if folder in split_names(self.in_domains):
                table[name] = dataclasses.replace(table[name], folder=folder)
        if self.load_pseudo_depth:
            for name, m in table.items():
                if m.plot == "scalar":
                    table[name] = dataclasses.replace(m, folder=f"pseudo_{m.data_folder}")
        return table

    @property
    def recipe_fields(self) -> tuple[str, ...]:
        """Statistics of standardised depth (SPEC section 6)."""
        return ("robust_unit", "robust_pixels")

    def fields_set(self) -> dict[str, set[str]]:
        """Add the statistics that ``depth_stats`` chooses."""
        fields = super().fields_set()
        if "depth_stats" in self.set_by_user:
            for name, m in self.table().items():
                if m.normalization == "robust":
                    fields.setdefault(name, set()).add("robust_pixels")
        return fields

    def _robust_fields(self, modality: Modality) -> dict[str, Any]:
        """Statistics on stored values, without a division (SPEC section 6)."""
        robust = modality.normalization == "robust"
        return {"robust_unit": 1.0, "robust_pixels": self.depth_stats} if robust else {}

    def target(self, class_names: tuple[str, ...] = ()) -> Modality:
        """Modality of the label maps as the model predicts them: ids ``0 .. num_classes - 1``."""
        return Modality(
            TARGET,
            kind="labels",
            num_classes=self.num_classes,
            folder=self.label_folder,
            interpolation="nearest",
            loss="cross_entropy",
            plot="labels",
            class_names=class_names,
            suffix=self.label_suffix,
            label_map=parse_label_map(self.label_map),
        )

    def problems(self) -> Iterator[str]:
        """Inputs that read the labels."""
        yield from super().problems()
        yield from weight_problems(self.class_weights)
        yield from flip_problems(self, self.table)
        known = get_args(SegLoss)
        for loss in self.losses:
            if loss not in known:
                yield f"seg_loss: '{loss}' is not one of {', '.join(known)}, joined by '+'"
        if len(set(self.losses)) < len(self.losses):
            yield f"seg_loss: {self.seg_loss} names a loss twice"
        highest = self.num_classes - 1 + self.seg_reduce_zero_label
        try:
            ids = targets_of(parse_label_map(self.label_map)) - {VOID}
            if ids and max(ids) > highest:
                yield f"label_map: class id {max(ids)} is above {highest} (num_classes)"
        except ValueError as err:
            yield f"label_map: {err}"
        table = self.table() if not list(super().problems()) else {}
        for source in self.in_names:
            if source in table and table[source].data_folder == self.label_folder:
                yield (
                    f"in_domains: '{source}' reads the folder '{self.label_folder}' of the truth; "
                    "give it another folder, or use pseudo_semseg"
                )


@dataclass(frozen=True)
class SemsegModelOptions(DenseModelOptions):
    """Model and head."""

    input_size: Sides = option(512, "Image side in pixels, or height and width", within="[1, inf)")


@dataclass(frozen=True)
class SemsegRuntimeOptions(RuntimeOptions):
    """Run: duration, device, processes."""

    epochs: int = option(64, "Passes over the training set", within="[1, inf)")
    batch_size: int = option(4, "Images per GPU and batch", within="[1, inf)")
    fp16: bool = option(
        True, "Mixed precision, as --precision says; off: float32", on_resume="applied"
    )


@dataclass(frozen=True)
class SemsegConfig(DenseFinetuneConfig):
    """Fine-tune for semantic segmentation from any of rgb, depth, pseudo labels."""

    data: SemsegDataOptions = field(default_factory=SemsegDataOptions)
    model: SemsegModelOptions = field(default_factory=SemsegModelOptions)
    runtime: SemsegRuntimeOptions = field(default_factory=SemsegRuntimeOptions)

    @property
    def precision(self) -> str:
        """Number format that the options ask for."""
        return self.runtime.precision if self.runtime.fp16 else "fp32"

    def problems(self) -> Iterator[str]:
        """A precision that contradicts --no_fp16."""
        yield from super().problems()
        if not self.runtime.fp16 and self.runtime.precision not in ("auto", "fp32"):
            yield f"no_fp16: contradicts precision {self.runtime.precision}"
