"""Options that the fine-tuning scripts share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from multimae.specs.heads import HeadKind, HeadOptions
from multimae.specs.modalities import ModalityTable
from utils.config.fields import option
from utils.config.options import (
    DataOptions,
    LogOptions,
    ModelOptions,
    OptimOptions,
    RunConfig,
    StartOptions,
    split_names,
)

Split = Literal["eval", "test"]


@dataclass(frozen=True)
class FinetuneDataOptions(DataOptions):
    """Data."""

    eval_data_path: str | None = option("ADD_DATA_PATH_HERE", "Validation images")
    test_data_path: str | None = option(None, "Test images, for --test", on_resume="free")
    max_train_images: int | None = option(
        None, "Train on N images, evenly spread", within="[1, inf)"
    )
    max_val_images: int | None = option(
        None, "Evaluate on N images, spread over the set", within="[1, inf)"
    )

    def problems(self) -> Iterator[str]:
        """Invalid modalities and folders; a number of images where weights say how often."""
        yield from super().problems()
        if self.sources and self.max_train_images is not None:
            yield (
                "max_train_images: set it to null (all) where data_path is a list: the weights of "
                "the folders say how often their images are used"
            )


def class_weights_option() -> Any:
    """Declare ``class_weights`` of a task with cross-entropy."""
    return option(
        None,
        "Weights of the classes in the loss: balanced (median frequency of the training labels), a "
        "JSON or YAML file by class name or id, or one number per class",
    )


def weight_problems(option: Sequence[str] | None) -> Iterator[str]:
    """What is wrong with the values of ``class_weights``."""
    if option is not None:
        from utils.data.sets.class_weights import option_problem

        problem = option_problem(option)
        if problem:
            yield f"class_weights: {problem}"


def flip_problems(data: Any, table: Callable[[], ModalityTable]) -> Iterator[str]:
    """What is wrong with ``vflip`` and ``scale_jitter`` of dense tasks."""
    low, high = data.scale_jitter
    if low > high:
        yield f"scale_jitter: {low:g} is above {high:g}"
    try:
        modalities = table()
    except ValueError:  # reported by the data section
        return
    for name in data.in_names:
        m = modalities.get(name)
        if data.vflip and m is not None and m.hflip_negate and not m.vflip_negate:
            yield (
                f"vflip: '{name}' has hflip_negate and no vflip_negate; declare the channels that "
                "point up or down, such as vflip_negate: [1]"
            )


@dataclass(frozen=True)
class FinetuneModelOptions(ModelOptions):
    """Model."""

    model: str = option("multivit_base", "Registered builder of the model")

    def problems(self) -> Iterator[str]:
        """Models that mask their inputs."""
        yield from super().problems()
        if self.model.startswith("pretrain_"):
            yield f"model: {self.model} is for pre-training; fine-tuning needs a multivit_*"

    @property
    def encoder_drop_path(self) -> float:
        """Drop-path rate of the encoder, under one name for all scripts."""
        return 0.0


@dataclass(frozen=True)
class DenseModelOptions(FinetuneModelOptions):
    """Model and head for dense prediction."""

    drop_path_encoder: float = option(0.1, "Drop-path rate of the encoder", within="[0, 1)")
    learnable_pos_emb: bool = option(False, "Train the position tables")
    output_adapter: HeadKind = option("convnext", "Head")
    decoder_dim: int = option(6144, "Width of Segmenter and ConvNeXt heads", within="[1, inf)")
    decoder_depth: int = option(4, "Blocks of Segmenter and ConvNeXt heads", within="[0, inf)")
    drop_path_decoder: float = option(
        0.0, "Drop-path rate of Segmenter and ConvNeXt heads", within="[0, 1)"
    )
    decoder_preds_per_patch: int = option(
        16, "Predictions per patch of the ConvNeXt head, a square number", within="[1, inf)"
    )
    decoder_interpolate_mode: Literal["bilinear", "nearest"] = option(
        "bilinear", "Last upsampling of the ConvNeXt head"
    )
    decoder_main_tasks: str = option("rgb", "Modalities whose tokens the head reads, joined by '-'")

    @property
    def encoder_drop_path(self) -> float:
        """Drop-path rate of the encoder."""
        return self.drop_path_encoder

    @property
    def head(self) -> HeadOptions:
        """Shape of the head."""
        return HeadOptions(
            self.output_adapter,
            split_names(self.decoder_main_tasks),
            self.decoder_dim,
            self.decoder_depth,
            self.decoder_preds_per_patch,
            self.decoder_interpolate_mode,
            self.drop_path_decoder,
        )


@dataclass(frozen=True)
class FinetuneOptimOptions(OptimOptions):
    """Optimiser and schedule."""

    opt_betas: tuple[float, ...] | None = option(
        (0.9, 0.999), "Betas of Adam; none: the optimiser's default", within="[0, 1)"
    )
    lr: float = option(1e-4, "Absolute learning rate", within="(0, inf)")
    layer_decay: float = option(0.75, "Learning-rate factor per layer", within="(0, 1]")
    scale_input_lr: bool = option(True, "Decay the learning rate of the input adapters, too")
    freeze_transformer: bool = option(False, "Do not train the encoder blocks")
    freeze_encoder: bool = option(
        False, "Train the heads alone: input adapters, global tokens and blocks keep their weights"
    )
    lora_rank: int = option(
        0,
        "Train low-rank adapters (LoRA) of this rank in the encoder, and the heads; 0: all weights",
        within="[0, inf)",
    )
    no_lr_scale_list: str = option("", "Parts of names without layer decay, joined by '-'")
    warmup_epochs: int = option(1, "Epochs of warm-up", within="[0, inf)")

    @property
    def keeps_encoder(self) -> bool:
        """Whether the weights of the encoder and its input adapters do not change."""
        return self.freeze_encoder or self.lora_rank > 0

    @property
    def rates(self) -> dict[str, float | None]:
        """Arguments ``blr`` and ``lr`` of :func:`utils.training.schedule.make_run_plan`."""
        return {"blr": None, "lr": self.lr}


@dataclass(frozen=True)
class FinetuneLogOptions(LogOptions):
    """Logs and evaluation."""

    log_images_wandb: bool = option(
        False, "Accepted for old commands: pictures go to every active log", on_resume="free"
    )
    log_images_freq: int = option(
        5,
        "Epochs between pictures, drawn when the model is evaluated",
        within="[1, inf)",
        on_resume="free",
    )

    @property
    def picture_freq(self) -> int:
        """Epochs between pictures."""
        return self.log_images_freq


@dataclass(frozen=True)
class TileEvalOptions:
    """Evaluation of dense heads."""

    eval_tiles: bool = option(
        False, "Evaluate at full resolution, by overlapping tiles of the input size"
    )
    eval_overlap: float = option(
        0.25, "Share of a tile that the next one covers, too", within="[0, 0.9]"
    )
    eval_tta: str = option(
        "", "Average predictions over flip, scales (0.75,1,1.25) or given ones: flip,0.5,1,2"
    )

    def problems(self) -> Iterator[str]:
        """Unknown augmentations."""
        if self.eval_tta:
            from multimae.inference.tiling.tta import Augmentation

            try:
                Augmentation.parse(self.eval_tta)
            except ValueError as err:
                yield f"eval_tta: {err}"

    @property
    def is_plain(self) -> bool:
        """Whether evaluation is at the input size, without augmentation."""
        return not self.eval_tiles and not self.eval_tta


@dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """Base of the fine-tuning configurations."""

    data: FinetuneDataOptions = field(default_factory=FinetuneDataOptions)
    model: FinetuneModelOptions = field(default_factory=FinetuneModelOptions)
    optim: FinetuneOptimOptions = field(default_factory=FinetuneOptimOptions)
    start: StartOptions = field(default_factory=StartOptions)
    log: FinetuneLogOptions = field(default_factory=FinetuneLogOptions)

    @property
    def used_names(self) -> tuple[str, ...]:
        """Modalities that this run reads."""
        return self.in_names

    def problems(self) -> Iterator[str]:
        """Contradictory durations and modalities, tests without a test set."""
        yield from super().problems()
        if self.start.model_ema_force_cpu and self.runtime.parallel == "fsdp":
            yield (
                "model_ema_force_cpu: parallel fsdp shards the average; drop the flag, or use "
                "parallel ddp"
            )
        yield from self.data.unused_problems(self.used_names)
        yield from self._freezing_problems()
        if self.start.test and not self.has_test_set:
            yield "test: needs test_data_path, the images to score on"
        if self.start.eval and not self.start.test and not self.has_eval_set:
            yield "eval: needs eval_data_path, the images to score on"
        if isinstance(self.model, DenseModelOptions):
            for name in self.model.head.main_tasks:
                if name not in self.in_names:
                    yield (
                        f"decoder_main_tasks: '{name}' is not among in_domains "
                        f"{'-'.join(self.in_names)}"
                    )

    def _freezing_problems(self) -> Iterator[str]:
        optim, start = self.optim, self.start
        name = "lora_rank" if optim.lora_rank else "freeze_encoder"
        if optim.lora_rank and (optim.freeze_encoder or optim.freeze_transformer):
            yield "lora_rank: contradicts freeze_encoder and freeze_transformer"
        if optim.keeps_encoder and not start.finetune and not self.scores_only:
            yield f"{name}: the encoder keeps its weights; set finetune to pre-trained ones"
        if optim.lora_rank and start.model_ema:
            yield "lora_rank: not with model_ema"
        if optim.lora_rank and self.runtime.parallel == "fsdp":
            yield "lora_rank: not with parallel fsdp; use ddp"

    @property
    def precision(self) -> str:
        """Number format that the options ask for."""
        return self.runtime.precision

    @property
    def scores_only(self) -> bool:
        """Whether nothing is trained."""
        return self.start.eval or self.start.test

    @property
    def has_test_set(self) -> bool:
        """Whether ``--test`` has images to score on."""
        return bool(self.data.test_data_path)


@dataclass(frozen=True)
class DenseFinetuneConfig(FinetuneConfig):
    """Base of the configurations for dense prediction."""

    tiles: TileEvalOptions = field(default_factory=TileEvalOptions)
