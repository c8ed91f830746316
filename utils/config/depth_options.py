"""The configuration of ``run_finetuning_depth.py``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from multimae.nn.tokens import Sides
from multimae.specs.heads import MM_PER_M
from multimae.specs.modalities import Modality, ModalityTable, make_table
from utils.config.fields import option
from utils.config.finetune_options import (
    DenseFinetuneConfig,
    DenseModelOptions,
    FinetuneDataOptions,
    FinetuneOptimOptions,
    flip_problems,
)
from utils.config.options import CheckpointOptions, RuntimeOptions

MASK_VALID = "mask_valid"
TARGET = "target_depth"
DEEPEST = 65535.0  # largest 16-bit value; also of floats, in stored units
MILLIMETRES = 0.001
_TARGET_FIELDS = ("storage", "no_data")


@dataclass(frozen=True)
class DepthDataOptions(FinetuneDataOptions):
    """Data."""

    use_mask_valid: bool = option(
        False,
        "Score and train where mask_valid is 255; off: where depth is not 0",
        off="no_mask_valid",
    )
    dataset_name: str = option("nyu", "Name of the data set, for logs", on_resume="free")
    aug_name: Literal["nyu-augs"] = option("nyu-augs", "Augmentation")
    color_augs: bool = option(
        False, "Jitter colours of half of the training images, then make 30 % grey"
    )
    hflip: float = option(0.5, "Probability of a left-right flip", within="[0, 1]")
    vflip: float = option(0.0, "Probability of an upside-down flip", within="[0, 1]")
    scale_jitter: tuple[float, float] = option(
        (1.0, 1.0), "Range of the factor on the size of training images", within="[1, inf)"
    )
    max_train_images: int | None = option(
        1000, "Train on N images, evenly spread", within="[1, inf)"
    )
    max_val_images: int | None = option(100, "Evaluate on N images", within="[1, inf)")
    max_test_images: int | None = option(
        100, "Test on N images", within="[1, inf)", on_resume="free"
    )
    depth_folder: str = option("depth", "Folder of the true depth, 16-bit PNG in mm")
    depth_scale: float = option(
        MILLIMETRES,
        "Metres per stored unit of the true depth: 1 for files in metres (floats are read, too)",
        within="(0, inf)",
    )
    depth_mean: float = option(2070.7764, "Mean of the target in mm (NYUv2's)", within="(0, inf)")
    depth_std: float = option(777.5723, "Deviation of the target in mm", within="(0, inf)")

    def target(self) -> Modality:
        """Modality of the true depth, normalised as ``(mm - depth_mean) / depth_std``.

        Files hold 16-bit integers, or numbers of any type if ``depth_scale`` is set or
        ``modalities: {target_depth: {storage: float}}``; NaN is then invalid, or ``no_data`` there.

        Raises:
            ValueError: Invalid fields of ``target_depth``.
        """
        top_mm = DEEPEST * (self.depth_scale * MM_PER_M)
        row = Modality(
            TARGET,
            num_channels=1,
            folder=self.depth_folder,
            storage="integer" if self.depth_scale == MILLIMETRES else "float",
            max_value=DEEPEST,
            mean=(self.depth_mean / top_mm,),
            std=(self.depth_std / top_mm,),
            interpolation="nearest",
            plot="scalar",
        )
        declared = {"max_value": DEEPEST, **self._declared_target()}
        row = make_table({TARGET: declared}, {TARGET: row})[TARGET]
        missing = row.storage == "float" and row.no_data is None
        return replace(row, no_data=math.nan) if missing else row

    @property
    def declares_no_data(self) -> bool:
        """Whether the config names a value of pixels without depth."""
        return "no_data" in self._declared_target()

    def table(self) -> ModalityTable:
        """The modality table of this run, without the target."""
        others = {name: row for name, row in self.modalities.items() if name != TARGET}
        return FinetuneDataOptions.table(replace(self, modalities=others))

    def problems(self) -> Iterator[str]:
        """Fields of the target that other options set, or that are invalid."""
        yield from super().problems()
        yield from flip_problems(self, self.table)
        declared = self._declared_target()
        if TARGET in self.in_names:
            yield f"in_domains: '{TARGET}' is the truth"
        wrong = [key for key in declared if key not in _TARGET_FIELDS]
        if wrong:
            yield (
                f"modalities: {TARGET} takes {' and '.join(_TARGET_FIELDS)}, not "
                f"{', '.join(map(str, wrong))}; set depth_folder, depth_scale, depth_mean and "
                "depth_std"
            )
            return
        try:
            self.target()
        except ValueError as err:
            yield from (f"modalities: {line}" for line in str(err).splitlines())

    def _declared_target(self) -> Mapping[str, Any]:
        row = self.modalities.get(TARGET)
        return row if isinstance(row, Mapping) else {} if row is None else {"row": row}


@dataclass(frozen=True)
class DepthModelOptions(DenseModelOptions):
    """Model and head."""

    input_size: Sides = option(256, "Image side in pixels, or height and width", within="[1, inf)")
    drop_path_encoder: float = option(0.0, "Drop-path rate of the encoder", within="[0, 1)")
    output_adapter: Literal["dpt", "convnext"] = option("dpt", "Head")
    decoder_depth: int = option(2, "Blocks of the ConvNeXt head", within="[0, inf)")
    decoder_preds_per_patch: int = option(
        64, "Predictions per patch of the ConvNeXt head, a square number", within="[1, inf)"
    )


@dataclass(frozen=True)
class DepthOptimOptions(FinetuneOptimOptions):
    """Optimiser and schedule."""

    weight_decay: float = option(1e-4, "Weight decay", within="[0, inf)")
    warmup_epochs: int = option(100, "Epochs of warm-up", within="[0, inf)")
    loss: Literal["berhu", "l1", "l2", "mse"] = option("berhu", "Loss")


@dataclass(frozen=True)
class DepthRuntimeOptions(RuntimeOptions):
    """Run: duration, device, processes."""

    epochs: int = option(2000, "Passes over the training set", within="[1, inf)")
    batch_size: int = option(64, "Images per GPU and batch", within="[1, inf)")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "fp32",
        "Autocast type; fp32 as published; auto: the best the device has",
        on_resume="applied",
    )
    tmp: bool = option(False, "Accepted for old commands; without effect", on_resume="free")


@dataclass(frozen=True)
class DepthCheckpointOptions(CheckpointOptions):
    """Checkpoints."""

    save_ckpt_freq: int = option(200, "Epochs between checkpoints", within="[1, inf)")


@dataclass(frozen=True)
class DepthConfig(DenseFinetuneConfig):
    """Fine-tune for monocular depth estimation."""

    data: DepthDataOptions = field(default_factory=DepthDataOptions)
    model: DepthModelOptions = field(default_factory=DepthModelOptions)
    optim: DepthOptimOptions = field(default_factory=DepthOptimOptions)
    runtime: DepthRuntimeOptions = field(default_factory=DepthRuntimeOptions)
    checkpoint: DepthCheckpointOptions = field(default_factory=DepthCheckpointOptions)

    @property
    def used_names(self) -> tuple[str, ...]:
        """Modalities that this run reads, the target among them."""
        return (*self.in_names, TARGET)

    def problems(self) -> Iterator[str]:
        """Inputs that read the target."""
        yield from super().problems()
        known = {} if any(self.data.problems()) else self.table()
        for name in self.in_names:
            if name in known and known[name].data_folder == self.data.depth_folder:
                yield (
                    f"in_domains: '{name}' reads the folder '{self.data.depth_folder}' of the "
                    "truth; give it another folder"
                )
