"""The configuration of ``run_pretraining_multimae.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from multimae.nn.tokens import as_size
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


@dataclass(frozen=True)
class PretrainDataOptions(DataOptions):
    """Data."""

    in_domains: str = option("rgb-depth-semseg", "Input modalities, joined by '-'")
    out_domains: str = option("rgb-depth-semseg", "Predicted modalities, joined by '-'")
    missing: Literal["error", "allow"] = option(
        "error",
        "Sample without a file of some modality: stop, or allow (its tokens go to the other "
        "modalities, and it has no loss)",
    )
    hflip: float = option(0.5, "Probability of a left-right flip", within="[0, 1]")
    crop_scale: tuple[float, float] = option(
        (0.2, 1.0), "Smallest and largest share of the image's area in a crop", within="(0, 1]"
    )
    crop_ratio: tuple[float, float] = option(
        (3 / 4, 4 / 3), "Smallest and largest width / height of a crop", within="(0, inf)"
    )
    device_crops: bool = option(
        False, "Crop and resize photos on the device, not in the loader", on_resume="applied"
    )

    def problems(self) -> Iterator[str]:
        """Invalid modalities, empty ranges."""
        yield from super().problems()
        for key in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, key)
            if low > high:
                yield f"{key}: the smallest value {low} exceeds the largest {high}"


@dataclass(frozen=True)
class PretrainModelOptions(ModelOptions):
    """Model, masking and losses."""

    num_encoded_tokens: int = option(98, "Visible patches, all modalities", within="[1, inf)")
    alphas: float = option(
        1.0,
        "Dirichlet concentration of the modalities' shares of visible patches",
        within="(0, inf)",
    )
    sample_tasks_uniformly: bool = option(
        False, "Draw a subset of the modalities first, every one equally likely"
    )
    drop_path: float = option(0.0, "Drop-path rate of the last encoder block", within="[0, 1)")
    decoder_dim: int = option(256, "Width of the decoders", within="[1, inf)")
    decoder_depth: int = option(2, "Transformer blocks per decoder", within="[0, inf)")
    decoder_num_heads: int = option(8, "Attention heads of the decoders", within="[1, inf)")
    decoder_use_task_queries: bool = option(True, "Queries from a modality's own visible tokens")
    decoder_use_xattn: bool = option(True, "Cross-attention to the tokens of all modalities")
    extra_norm_pix_loss: bool = option(
        True, "Also predict rgb normalised per patch, by a separate decoder"
    )
    loss_on_unmasked: bool = option(False, "Include visible patches in the loss")
    fp32_output_adapters: str = option("", "Modalities decoded in float32, joined by '-'")

    def problems(self) -> Iterator[str]:
        """Models without masking, incompatible sizes."""
        yield from super().problems()
        if self.model.startswith("multivit_"):
            yield f"model: {self.model} does not mask; pre-training needs a pretrain_multimae_*"
        dim, heads = self.decoder_dim, self.decoder_num_heads
        if dim % heads:
            yield f"decoder_dim: {dim} is not divisible by decoder_num_heads {heads}"
        if dim % 4:
            yield f"decoder_dim: {dim} is not divisible by 4, as sin-cos positions need"


@dataclass(frozen=True)
class PretrainOptimOptions(OptimOptions):
    """Optimiser and schedule."""

    blr: float = option(1e-4, "Learning rate per 256 images of global batch", within="(0, inf)")
    skip_grad: float | None = option(
        None, "Skip steps whose gradient norm exceeds this", within="(0, inf)"
    )
    decay_norm_bias: bool = option(True, "Apply weight decay to biases and norms (as published)")
    task_balancer: Literal["none", "uncertainty"] = option("none", "Weights of the losses")
    balancer_lr_scale: float = option(
        1.0, "Learning rate of the balancer, relative to the model's", within="(0, inf)"
    )

    @property
    def rates(self) -> dict[str, float | None]:
        """Arguments ``blr`` and ``lr`` of :func:`utils.training.schedule.make_run_plan`."""
        return {"blr": self.blr, "lr": None}


@dataclass(frozen=True)
class PretrainStartOptions:
    """Weights to start from."""

    init_weights: str = option(
        "", "Weights of a MultiMAE or a ViT (MAE, timm, DINO) to start from: a path or an https URL"
    )
    init_key: str = option(
        "model|module|state_dict|teacher", "Keys of the weights in that file, by preference"
    )
    init_prefix: str = option("", "Prefix to strip from the weights' names")
    train_only: str = option(
        "", "Train the adapters and decoders of these modalities only, joined by '-'; empty: all"
    )

    @property
    def weights(self) -> StartOptions:
        """The same for :func:`utils.checkpoint.start_weights.StartWeights`."""
        return StartOptions(
            finetune=self.init_weights, model_key=self.init_key, model_prefix=self.init_prefix
        )

    def problems(self) -> Iterator[str]:
        """URLs other than https."""
        for problem in self.weights.problems():
            yield problem.replace("finetune", "init_weights", 1)


@dataclass(frozen=True)
class PretrainLogOptions(LogOptions):
    """Logs and evaluation."""

    probe_freq: int = option(
        0, "Epochs between probes of frozen features; 0: none", within="[0, inf)", on_resume="free"
    )
    probe_data_path: str = option("", "Class folders of the kNN probe", on_resume="free")
    probe_label_file: str = option("", "CSV name,label instead of folders", on_resume="free")


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Pre-train a MultiMAE on aligned images of several modalities."""

    data: PretrainDataOptions = field(default_factory=PretrainDataOptions)
    model: PretrainModelOptions = field(default_factory=PretrainModelOptions)
    optim: PretrainOptimOptions = field(default_factory=PretrainOptimOptions)
    start: PretrainStartOptions = field(default_factory=PretrainStartOptions)
    log: PretrainLogOptions = field(default_factory=PretrainLogOptions)

    @property
    def out_names(self) -> tuple[str, ...]:
        """Names of the targets: the output modalities, then their per-patch normalised copies."""
        names = split_names(self.data.out_domains)
        if not self.model.extra_norm_pix_loss:
            return names
        copies = (m.name for m in self.table().values() if m.norm_pix and m.source in names)
        return tuple(dict.fromkeys((*names, *copies)))

    def problems(self) -> Iterator[str]:
        """Contradictory modalities, sizes and durations."""
        yield from super().problems()
        if self.data.device_crops:
            from utils.data.device_crops import problems

            yield from problems(self.runtime.device, fast_decode=self.data.fast_decode)
        outputs = split_names(self.data.out_domains)
        yield from self.data.name_problems("out_domains", outputs)
        if self.start.train_only:
            yield from self.data.name_problems("train_only", split_names(self.start.train_only))
        in_float32 = split_names(self.model.fp32_output_adapters)
        if in_float32:
            yield from self.data.name_problems("fp32_output_adapters", in_float32)
        try:
            table = self.table()
        except ValueError:  # the data section reports it
            return
        used = tuple(dict.fromkeys((*self.in_names, *outputs, *self.out_names)))
        yield from self.data.unused_problems(used)
        sizes, patch = as_size(self.model.input_size), self.model.patch_size
        for name in dict.fromkeys(n for n in (*self.in_names, *outputs) if n in table):
            m = table[name]
            side = max(1, (m.patch_size or patch) // m.stride) * m.stride
            for size in dict.fromkeys(s for s in sizes if s % side and side != patch):
                yield f"input_size: {size} is not divisible by {side}, the patch side of '{name}'"
