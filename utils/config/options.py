"""Sections of options that all scripts share; scripts subclass them to add options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from multimae.nn.tokens import Sides, as_size, plain_sides
from multimae.specs.coercion import did_you_mean
from multimae.specs.modalities import (
    PREPARATION,
    UNIT_16_BIT,
    Interpolation,
    Modality,
    ModalityTable,
    default_table,
    make_table,
)
from multimae.specs.registry import split_name
from utils.config.fields import option, user_set
from utils.config.runtime_options import RuntimeOptions as RuntimeOptions
from utils.config.runtime_options import default_device as default_device
from utils.config.runtime_options import default_num_workers as default_num_workers
from utils.config.runtime_options import device_problems as device_problems
from utils.config.train_sources import TrainSources

# A target computed from another modality's data is stored and normalised like that modality.
_OF_TARGETS = (
    *("kind", "num_classes", "hflip_negate", "vflip_negate", "dim_class_emb", "class_names"),
    "plot",
)
FOLLOWS_SOURCE = tuple(f for f in PREPARATION if f not in _OF_TARGETS)

# Known to exist without loading timm, which takes seconds.
_COMMON_OPTIMISERS = ("adamw", "adam", "sgd")


def split_names(text: str) -> tuple[str, ...]:
    """``"rgb-depth"`` as ``("rgb", "depth")``."""
    return tuple(text.split("-")) if text else ()


@dataclass(frozen=True)
class DataOptions(TrainSources):
    """Data."""

    data_path: str | tuple[Mapping[str, Any], ...] = option(
        "ADD_DATA_PATH_HERE",
        "Training images: one sub-folder per modality, same file names; in YAML also a list of "
        "{path, weight} to sample from",
        on_resume="free",
    )
    eval_data_path: str | None = option(
        None, "Validation images, laid out as --data_path", on_resume="applied"
    )
    in_domains: str = option("rgb", "Input modalities, joined by '-'")
    modalities: Mapping[str, Any] = option(
        dict, "Modalities to change or add: {name: {field: value}}"
    )
    standardize_depth: bool = option(
        False, "Standardise depth per image, by the mean and variance of its middle 80 %"
    )
    imagenet_default_mean_and_std: bool = option(
        True, "Normalise rgb by ImageNet's mean and std; off: by 0.5 and 0.5"
    )
    train_interpolation: Interpolation = option("bicubic", "Interpolation that resizes rgb")
    index_cache: str = option(
        "auto",
        "Folder that keeps the file lists of large data sets for later starts; auto: "
        "~/.cache/multimae/index; empty: none",
        on_resume="free",
    )
    num_workers: int = option(
        default_num_workers,
        "Loader processes per GPU; by default from the CPU cores, 1 to 16",
        within="[0, inf)",
        on_resume="free",
    )
    fast_decode: bool = option(False, "Decode training photos faster; values differ slightly")
    pin_mem: bool = option(True, "Load batches into page-locked memory", on_resume="free")
    eval_batch_size: int | None = option(
        None,
        "Images per GPU in evaluation; none: --batch_size",
        within="[1, inf)",
        on_resume="free",
    )
    max_val_images: int | None = option(
        None, "Evaluate on N images, spread over the set", within="[1, inf)"
    )
    on_bad_sample: Literal["error", "skip"] = option(
        "error",
        "Bad or missing training file: stop, or skip the sample; evaluation always stops",
        on_resume="applied",
    )
    max_bad_samples: int = option(
        100,
        "With --on_bad_sample skip: maximum number of bad samples",
        within="[0, inf)",
        on_resume="applied",
    )

    override_inputs: bool = option(
        False,
        "Prepare inputs as the options say where the weights were trained otherwise",
        on_resume="free",
    )
    set_by_user: frozenset[str] = user_set()

    @property
    def recipe_fields(self) -> tuple[str, ...]:
        """Fields of inputs in which fine-tuning differs from pre-training, as published."""
        return ()

    @property
    def skips_bad(self) -> bool:
        """Whether training skips bad samples."""
        return self.on_bad_sample == "skip"

    @property
    def in_names(self) -> tuple[str, ...]:
        """Names of the input modalities."""
        return split_names(self.in_domains)

    def table(self) -> ModalityTable:
        """The modality table of this run.

        Fields set under ``modalities`` override the historical flags.

        Raises:
            ValueError: Every problem in ``modalities``, one per line.
        """
        specs: dict[str, Any] = dict(self._fields_by_flags())
        for key, fields in self.modalities.items():
            name = str(key)  # YAML reads names like `1` and `no` as other types
            merge = isinstance(fields, Mapping)
            specs[name] = {**specs.get(name, {}), **fields} if merge else fields
        table = make_table(specs)
        for name, modality in table.items():
            own = self.modalities.get(name) or {}
            fields = self._robust_fields(modality)
            missing = {k: v for k, v in fields.items() if k not in own}
            table[name] = dataclasses.replace(modality, **missing)
        for name, modality in table.items():
            if modality.source is not None:
                source, own = table[modality.source], self.modalities.get(name, {})
                followed = {k: getattr(source, k) for k in FOLLOWS_SOURCE if k not in own}
                table[name] = dataclasses.replace(modality, **followed)
        return table

    def fields_set(self) -> dict[str, set[str]]:
        """Fields of modalities that the user set, by name."""
        fields: dict[str, set[str]] = {"rgb": set(), "depth": set()}
        if "train_interpolation" in self.set_by_user:
            fields["rgb"].add("interpolation")
        if "imagenet_default_mean_and_std" in self.set_by_user:
            fields["rgb"] |= {"mean", "std"}
        if "standardize_depth" in self.set_by_user:
            fields["depth"].add("normalization")
        for name, declared in self.modalities.items():
            fields.setdefault(str(name), set()).update(map(str, declared))
        return fields

    def _robust_fields(self, modality: Modality) -> dict[str, Any]:
        """Defaults of ``normalization: robust`` for depth (SPEC section 5)."""
        stored_16_bit = modality.storage == "integer" and modality.max_value > 255
        robust = modality.normalization == "robust" and stored_16_bit
        return {"robust_unit": UNIT_16_BIT} if robust else {}

    def _fields_by_flags(self) -> dict[str, dict[str, Any]]:
        half = {"mean": (0.5,), "std": (0.5,)}
        return {
            "rgb": {
                "interpolation": self.train_interpolation,
                **({} if self.imagenet_default_mean_and_std else half),
            },
            "depth": {"normalization": "robust" if self.standardize_depth else "mean_std"},
        }

    def problems(self) -> Iterator[str]:
        """Modalities that are invalid, unknown or targets only."""
        table: ModalityTable = {}
        try:
            table = self.table()
        except ValueError as err:
            yield from (f"modalities: {line}" for line in str(err).splitlines())
        yield from self.name_problems("in_domains", self.in_names)
        for name in self.in_names:
            if name in table and table[name].source:
                yield f"in_domains: '{name}' is a target computed from '{table[name].source}'"
        yield from self.source_problems()

    def unused_problems(self, used: tuple[str, ...]) -> Iterator[str]:
        """Declared modalities, misspelt perhaps, that no domain of this run uses."""
        for name in map(str, self.modalities):
            if name not in used and name not in default_table():
                near = did_you_mean(name, [*used, *default_table()])
                yield (
                    f"modalities: no domain uses '{name}'{near} (used: {', '.join(used)}). Correct "
                    "its name, add it to the domains, or remove it."
                )

    def name_problems(self, key: str, names: tuple[str, ...]) -> Iterator[str]:
        """What is wrong with the modalities that the option ``key`` names."""
        known = list(dict.fromkeys([*default_table(), *map(str, self.modalities)]))
        if not names:
            yield f"{key}: name at least one modality of {', '.join(known)}"
        for name in dict.fromkeys(names):
            if name not in known:
                yield (
                    f"{key}: unknown modality '{name}'{did_you_mean(name, known)} "
                    f"(known: {', '.join(known)}; declare new ones under modalities, "
                    "as `multimae init FOLDER` does)"
                )
            if names.count(name) > 1:
                yield f"{key}: '{name}' is named twice"


@dataclass(frozen=True)
class ModelOptions:
    """Model."""

    model: str = option("pretrain_multimae_base", "Registered builder of the model")
    patch_size: int = option(16, "Patch side in full-resolution pixels", within="[1, inf)")
    input_size: Sides = option(224, "Image side in pixels, or height and width", within="[1, inf)")
    num_global_tokens: int = option(1, "Learned global tokens", within="[0, inf)")
    set_by_user: frozenset[str] = user_set()

    def __post_init__(self) -> None:
        """Write a square as one side."""
        object.__setattr__(self, "input_size", plain_sides(self.input_size))

    def problems(self) -> Iterator[str]:
        """Unknown models, image sizes that the patch size does not divide."""
        try:
            split_name(self.model)
        except ValueError as err:
            yield f"model: {err}"
        patch = self.patch_size
        for size in dict.fromkeys(as_size(self.input_size)):
            if size % patch:
                near = [s for s in (size // patch * patch, (size // patch + 1) * patch) if s]
                yield (
                    f"input_size: {size} is not divisible by patch_size {patch}; "
                    f"nearest: {' or '.join(map(str, near))}"
                )


@dataclass(frozen=True)
class OptimOptions:
    """Optimiser and schedule."""

    opt: str = option("adamw", "Optimiser, by its name in timm")
    opt_eps: float = option(1e-8, "Epsilon of Adam", within="(0, inf)")
    opt_betas: tuple[float, ...] | None = option(
        (0.9, 0.95), "Betas of Adam; none: the optimiser's default", within="[0, 1)"
    )
    momentum: float = option(0.9, "Momentum of SGD", within="[0, 1)")
    clip_grad: float | None = option(None, "Maximum gradient norm", within="(0, inf)")
    weight_decay: float = option(0.05, "Weight decay", within="[0, inf)")
    weight_decay_end: float | None = option(
        None, "Weight decay at the end of its cosine schedule; none: constant", within="[0, inf)"
    )
    decoder_decay: float | None = option(
        None, "Weight decay of the output adapters; none: --weight_decay", within="[0, inf)"
    )
    warmup_lr: float = option(1e-6, "Learning rate at the start of warm-up", within="[0, inf)")
    min_lr: float = option(0.0, "Learning rate the cosine falls to", within="[0, inf)")
    warmup_epochs: int = option(40, "Epochs of warm-up", within="[0, inf)")
    warmup_steps: int = option(-1, "Steps of warm-up; if > 0, replaces epochs", within="[-1, inf)")
    update_freq: int = option(
        1, "Batches accumulated per step", within="[1, inf)", on_resume="free"
    )

    @property
    def rates(self) -> dict[str, float | None]:
        """Arguments ``blr`` and ``lr`` of :func:`utils.training.schedule.make_run_plan`."""
        raise NotImplementedError

    def problems(self) -> Iterator[str]:
        """Optimisers that do not exist."""
        if self.opt in _COMMON_OPTIMISERS:
            return
        from timm.optim import list_optimizers  # type: ignore[attr-defined]

        known = [str(name) for name in list_optimizers()]
        name = self.opt.lower().removeprefix("lookahead_")
        if name not in known:
            yield f"opt: unknown optimiser '{self.opt}'{did_you_mean(name, known)}"


@dataclass(frozen=True)
class CheckpointOptions:
    """Checkpoints."""

    output_dir: str = option(
        "", "Folder of checkpoints, logs and pictures; empty: nothing is saved", on_resume="free"
    )
    resume: str = option("", "Checkpoint to resume from", on_resume="free")
    auto_resume: bool = option(
        True, "Resume from the newest checkpoint of --output_dir", on_resume="free"
    )
    save_ckpt: bool = option(True, "Write checkpoints", on_resume="free")
    save_ckpt_freq: int = option(
        20, "Epochs between checkpoints", within="[1, inf)", on_resume="free"
    )
    save_ckpt_steps: int | None = option(
        None, "Steps between checkpoints", within="[1, inf)", on_resume="free"
    )
    save_ckpt_minutes: float | None = option(
        None,
        "Minutes between checkpoints, by the clock of rank 0",
        within="(0, inf)",
        on_resume="free",
    )
    keep_ckpts: int = option(
        0, "Keep the last N epoch checkpoints; 0: all", within="[0, inf)", on_resume="free"
    )
    async_save: bool = option(True, "Write checkpoints in the background", on_resume="free")


@dataclass(frozen=True)
class LogOptions:
    """Logs and evaluation."""

    log_every: int = option(50, "Steps between log lines", within="[1, inf)", on_resume="free")
    eval_freq: int = option(1, "Epochs between evaluations", within="[1, inf)", on_resume="free")
    early_stop_patience: int | None = option(
        None,
        "Stop after N evaluations in a row without a better score",
        within="[1, inf)",
        on_resume="applied",
    )
    peak_tflops: float | None = option(
        None,
        "Peak TFLOP/s of a device, for mfu; none: of a known GPU, no mfu on CPUs; 0: measure it",
        within="[0, inf)",
        on_resume="free",
    )
    profile: str = option(
        "", "START:END: profile these steps (from 1), trace in --output_dir", on_resume="free"
    )
    num_pictures: int = option(
        8, "Images in the picture grid; 0: none", within="[0, inf)", on_resume="free"
    )
    log_tensorboard: bool = option(False, "Log to TensorBoard, in --output_dir", on_resume="free")
    log_wandb: bool = option(False, "Log to Weights & Biases", on_resume="free")
    wandb_project: str | None = option(None, "W&B project", on_resume="free")
    wandb_entity: str | None = option(None, "W&B user or team", on_resume="free")
    wandb_run_name: str | None = option(None, "W&B run name", on_resume="free")
    wandb_group: str = option("", "W&B group", on_resume="free")

    def problems(self) -> Iterator[str]:
        """Steps to profile that are no range."""
        if self.profile:
            from utils.logs.profiling import range_problems

            yield from range_problems(self.profile)

    @property
    def picture_freq(self) -> int:
        """Epochs between pictures."""
        return self.eval_freq


@dataclass(frozen=True)
class StartOptions:
    """Weights to start from, and runs that only score."""

    finetune: str = option("", "Pre-trained weights: a path or an https URL")
    model_key: str = option("model|module", "Where a checkpoint has its weights, by preference")
    model_prefix: str = option("", "Prefix to strip from the weights' names")
    model_ema: bool = option(False, "Average the weights (EMA); evaluate and save the average")
    model_ema_decay: float = option(0.9999, "Decay of the average", within="[0, 1)")
    model_ema_force_cpu: bool = option(False, "Keep the average on the CPU", on_resume="free")
    eval: bool = option(False, "Score on --eval_data_path, do not train", on_resume="free")
    test: bool = option(
        False, "Score the best checkpoint on the test set, do not train", on_resume="free"
    )
    dist_eval: bool = option(
        False,
        "Accepted for old commands: evaluation is always sharded, with exact metrics",
        on_resume="free",
    )

    def problems(self) -> Iterator[str]:
        """URLs other than https."""
        if "://" in self.finetune and not self.finetune.startswith("https://"):
            yield "finetune: only https:// URLs are loaded; download other files first"


@dataclass(frozen=True)
class RunConfig:
    """Base of the scripts' configurations, which narrow the sections' types."""

    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    start: Any = None
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    log: LogOptions = field(default_factory=LogOptions)

    def table(self) -> ModalityTable:
        """The modality table of this run."""
        return self.data.table()

    @property
    def in_names(self) -> tuple[str, ...]:
        """Names of the input modalities."""
        return self.data.in_names

    @property
    def eval_freq(self) -> int:
        """Epochs between evaluations."""
        return self.log.eval_freq

    @property
    def scores_only(self) -> bool:
        """Whether nothing is trained."""
        return False

    @property
    def has_eval_set(self) -> bool:
        """Whether training evaluates."""
        return bool(self.data.eval_data_path)

    def problems(self) -> Iterator[str]:
        """A warm-up longer than the run, early stopping without evaluations."""
        if self.log.early_stop_patience and not self.has_eval_set and not self.scores_only:
            yield "early_stop_patience: needs eval_data_path, the images to evaluate on"
        warmup, epochs = self.optim.warmup_epochs, self.runtime.epochs
        if self.optim.warmup_steps <= 0 and warmup >= epochs and not self.scores_only:
            yield (
                f"warmup_epochs: {warmup} must be less than epochs {epochs}; "
                "lower it or set warmup_steps"
            )
