"""The configuration of ``run_finetuning_depth.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from multimae.specs.modalities import Modality
from utils.config.fields import option
from utils.config.finetune_options import (
    DenseModelOptions,
    FinetuneConfig,
    FinetuneDataOptions,
    FinetuneOptimOptions,
)
from utils.config.options import CheckpointOptions, RuntimeOptions

MASK_VALID = "mask_valid"
TARGET = "target_depth"
DEEPEST = 65535.0  # largest 16-bit value, in mm


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
    max_train_images: int | None = option(
        1000, "Train on N images, evenly spread", within="[1, inf)"
    )
    max_val_images: int | None = option(100, "Evaluate on N images", within="[1, inf)")
    max_test_images: int | None = option(
        100, "Test on N images", within="[1, inf)", on_resume="free"
    )
    depth_folder: str = option("depth", "Folder of the true depth, 16-bit PNG in mm")
    depth_mean: float = option(2070.7764, "Mean of the target in mm (NYUv2's)", within="(0, inf)")
    depth_std: float = option(777.5723, "Deviation of the target in mm", within="(0, inf)")

    def target(self) -> Modality:
        """Modality of the true depth, normalised as ``(mm - depth_mean) / depth_std``."""
        return Modality(
            TARGET,
            num_channels=1,
            folder=self.depth_folder,
            max_value=DEEPEST,
            mean=(self.depth_mean / DEEPEST,),
            std=(self.depth_std / DEEPEST,),
            interpolation="nearest",
            plot="scalar",
        )


@dataclass(frozen=True)
class DepthModelOptions(DenseModelOptions):
    """Model and head."""

    input_size: int = option(256, "Image side in pixels", within="[1, inf)")
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
class DepthConfig(FinetuneConfig):
    """Fine-tune for monocular depth estimation."""

    data: DepthDataOptions = field(default_factory=DepthDataOptions)
    model: DepthModelOptions = field(default_factory=DepthModelOptions)
    optim: DepthOptimOptions = field(default_factory=DepthOptimOptions)
    runtime: DepthRuntimeOptions = field(default_factory=DepthRuntimeOptions)
    checkpoint: DepthCheckpointOptions = field(default_factory=DepthCheckpointOptions)

    def problems(self) -> Iterator[str]:
        """Inputs that read the target."""
        yield from super().problems()
        known = {} if list(self.data.problems()) else self.table()
        for name in self.in_names:
            if name in known and known[name].data_folder == self.data.depth_folder:
                yield (
                    f"in_domains: '{name}' reads the folder '{self.data.depth_folder}' of the "
                    "truth; give it another folder"
                )
