"""The configuration of ``run_finetuning_cls.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from multimae.specs.heads import LabelKind
from utils.config.fields import option
from utils.config.finetune_options import (
    FinetuneConfig,
    FinetuneDataOptions,
    FinetuneModelOptions,
    FinetuneOptimOptions,
    class_weights_option,
    weight_problems,
)
from utils.config.options import RuntimeOptions


@dataclass(frozen=True)
class ClsDataOptions(FinetuneDataOptions):
    """Data and augmentation."""

    data_path: str | tuple[Mapping[str, Any], ...] = option(
        "ADD_DATA_PATH_HERE/rgb",
        "Training images, MODALITY/CLASS/NAME; or a modality's folder; in YAML also a list of "
        "{path, weight} to sample from",
    )
    eval_data_path: str | None = option("ADD_DATA_PATH_HERE/rgb", "Validation images, as above")
    nb_classes: int = option(1000, "Number of classes", within="[2, inf)")
    data_set: Literal["CIFAR", "IMNET", "image_folder"] = option(
        "IMNET", "Layout; all are class folders (unpack CIFAR into such)"
    )
    color_jitter: float = option(0.4, "Colour jitter; only without --aa", within="[0, inf)")
    aa: str = option("rand-m9-mstd0.5-inc1", "RandAugment or AutoAugment, as timm writes it")
    smoothing: float = option(0.1, "Label smoothing", within="[0, 1)")
    crop_pct: float | None = option(
        None,
        "Share of the shortest side kept in evaluation; none: 224/256, from size 384 on 1",
        within="(0, 1]",
    )
    reprob: float = option(0.0, "Probability of random erasing", within="[0, 1]")
    remode: Literal["pixel", "const", "rand"] = option("pixel", "What is erased becomes")
    recount: int = option(1, "Largest number of erased boxes", within="[1, inf)")
    resplit: bool = option(
        False, "Accepted for old commands; there are no augmentation splits", on_resume="free"
    )
    mixup: float = option(0.8, "Alpha of Mixup; 0: none", within="[0, inf)")
    cutmix: float = option(1.0, "Alpha of CutMix; 0: none", within="[0, inf)")
    cutmix_minmax: tuple[float, ...] | None = option(
        None, "Smallest and largest side of CutMix's box, instead of alpha", within="[0, 1]"
    )
    mixup_prob: float = option(1.0, "Probability of either", within="[0, 1]")
    mixup_switch_prob: float = option(0.5, "Probability of CutMix if both are on", within="[0, 1]")
    mixup_mode: Literal["batch", "pair", "elem"] = option("batch", "What shares one draw")
    class_weights: tuple[str, ...] | None = class_weights_option()

    label_kind: LabelKind = option(
        "class", "An image has one class, several (multi), or numbers; the latter need --label_file"
    )
    label_file: str = option(
        "", "CSV of labels by image: name,label; name,a;b; name,number,...", on_resume="free"
    )
    eval_label_file: str = option(
        "", "CSV for evaluation and test; empty: --label_file", on_resume="free"
    )
    number_loss: Literal["mse", "l1"] = option("mse", "Loss of standardized numbers")

    @property
    def mixes(self) -> bool:
        """Whether Mixup or CutMix is on; for one class per image only."""
        mixes = self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None
        return mixes and self.label_kind == "class"

    def problems(self) -> Iterator[str]:
        """Invalid ranges."""
        yield from super().problems()
        yield from weight_problems(self.class_weights)
        yield from self._label_problems()
        if self.cutmix_minmax is not None and len(self.cutmix_minmax) != 2:
            yield "cutmix_minmax: give two numbers"

    def _label_problems(self) -> Iterator[str]:
        if self.eval_label_file and not self.label_file:
            yield "eval_label_file: needs label_file, that of the training images"
        if self.label_kind == "class":
            return
        if not self.label_file:
            yield f"label_kind: {self.label_kind} needs label_file, a CSV file"
        for name in ("mixup", "cutmix", "cutmix_minmax", "smoothing", "class_weights"):
            if name in self.set_by_user and getattr(self, name):
                yield f"{name}: is for label_kind class, not {self.label_kind}"


@dataclass(frozen=True)
class ClsModelOptions(FinetuneModelOptions):
    """Model and head."""

    drop: float = option(0.0, "Dropout of projections and MLPs", within="[0, 1)")
    attn_drop_rate: float = option(0.0, "Dropout of attention weights", within="[0, 1)")
    drop_path: float = option(0.1, "Drop-path rate of the encoder", within="[0, 1)")
    init_scale: float = option(0.001, "Factor on the head's initial weights", within="[0, inf)")
    use_mean_pooling: bool = option(
        True, "The head reads the mean of all tokens; off: the last", off="no_mean_pooling"
    )

    @property
    def encoder_drop_path(self) -> float:
        """Drop-path rate of the encoder."""
        return self.drop_path


@dataclass(frozen=True)
class ClsOptimOptions(FinetuneOptimOptions):
    """Optimiser and schedule."""

    opt_betas: tuple[float, ...] | None = option(
        None, "Betas of Adam; none: the optimiser's default", within="[0, 1)"
    )
    blr: float = option(5e-4, "Learning rate per 256 images of global batch", within="(0, inf)")
    lr: float | None = option(  # type: ignore[assignment]
        None, "Absolute learning rate; none: from --blr", within="(0, inf)"
    )
    layer_decay: float = option(0.65, "Learning-rate factor per layer", within="(0, 1]")
    min_lr: float = option(1e-6, "Learning rate the cosine falls to", within="[0, inf)")
    warmup_epochs: int = option(5, "Epochs of warm-up", within="[0, inf)")

    @property
    def rates(self) -> dict[str, float | None]:
        """Arguments of :func:`utils.training.schedule.make_run_plan`."""
        return {"blr": self.blr, "lr": self.lr}


@dataclass(frozen=True)
class ClsRuntimeOptions(RuntimeOptions):
    """Run: duration, device, processes."""

    epochs: int = option(100, "Passes over the training set", within="[1, inf)")
    batch_size: int = option(128, "Images per GPU and batch", within="[1, inf)")
    disable_eval_during_finetuning: bool = option(
        False, "Evaluate after the last epoch only", on_resume="free"
    )


@dataclass(frozen=True)
class ClsConfig(FinetuneConfig):
    """Fine-tune for image classification."""

    data: ClsDataOptions = field(default_factory=ClsDataOptions)
    model: ClsModelOptions = field(default_factory=ClsModelOptions)
    optim: ClsOptimOptions = field(default_factory=ClsOptimOptions)
    runtime: ClsRuntimeOptions = field(default_factory=ClsRuntimeOptions)

    @property
    def eval_freq(self) -> int:
        """Epochs between evaluations."""
        late = self.runtime.disable_eval_during_finetuning
        return self.runtime.epochs if late else self.log.eval_freq

    @property
    def crop_pct(self) -> float:
        """Crop of evaluation, as a share of the shorter side."""
        from utils.data.sets.class_folders import default_crop_pct

        return self.data.crop_pct or default_crop_pct(self.model.input_size)

    def problems(self) -> Iterator[str]:
        """Odd training batches, which Mixup cannot pair."""
        yield from super().problems()
        odd = self.runtime.batch_size % 2 == 1
        if self.data.mixes and odd and not self.scores_only:
            yield f"batch_size: {self.runtime.batch_size} is odd; Mixup and CutMix pair images"
