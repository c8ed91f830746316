"""The configuration of ``run_finetuning_taskonomy.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from multimae.nn.tokens import Sides
from multimae.specs.coercion import did_you_mean
from multimae.specs.modalities import Interpolation, ModalityTable
from utils.config.fields import option
from utils.config.finetune_options import (
    DenseFinetuneConfig,
    DenseModelOptions,
    FinetuneDataOptions,
    FinetuneOptimOptions,
)
from utils.config.options import RuntimeOptions, split_names
from utils.data.sets.taskonomy_views import TASKS, taskonomy_modalities


@dataclass(frozen=True)
class TaskonomyDataOptions(FinetuneDataOptions):
    """Data."""

    out_domains: str = option("normal", "Predicted tasks, joined by '-'")
    standardize_depth: bool = option(
        True, "Standardise depth inputs per image, by the mean and variance of their middle 80 %"
    )
    eval_data_path: str | None = option(None, "Root of the validation views; none: --data_path")
    taskonomy_splits: str = option(
        "", "Official CSV of the buildings' split; empty: splits.json, or by name", on_resume="free"
    )
    max_train_images: int | None = option(1000, "Train on the first N views", within="[1, inf)")
    max_val_images: int | None = option(100, "Evaluate on the first N views", within="[1, inf)")
    max_test_images: int | None = option(
        54514, "Test on the first N views", within="[1, inf)", on_resume="free"
    )

    train_interpolation: Interpolation = option("bilinear", "Interpolation that resizes rgb")

    @property
    def recipe_fields(self) -> tuple[str, ...]:
        """Resizing (SPEC section 6)."""
        return ("interpolation",)

    @property
    def out_names(self) -> tuple[str, ...]:
        """Names of the predicted tasks."""
        return split_names(self.out_domains)

    def table(self) -> ModalityTable:
        """The modality table, extended by Taskonomy's tasks."""
        return {**taskonomy_modalities(), **super().table()}

    def problems(self) -> Iterator[str]:
        """Tasks that do not exist."""
        for problem in super().problems():
            if not any(f"unknown modality '{name}'" in problem for name in TASKS):
                yield problem
        for name in self.out_names:
            if name not in TASKS:
                yield f"out_domains: unknown task '{name}'{did_you_mean(name, TASKS)}"
        if self.sources and not self.eval_data_path:
            yield "eval_data_path: name the folder of the validation views; data_path is a list"
        if not self.out_names:
            yield f"out_domains: name at least one of {', '.join(TASKS)}"
        if set(self.out_names) & set(self.in_names):
            yield "out_domains: an input cannot be predicted, too"


@dataclass(frozen=True)
class TaskonomyModelOptions(DenseModelOptions):
    """Model and heads."""

    input_size: Sides = option(384, "Image side in pixels, or height and width", within="[1, inf)")
    output_adapter: Literal["dpt"] = option("dpt", "Head")
    decoder_dim: int = option(
        768, "Accepted for old commands: DPT has its own", within="[1, inf)", on_resume="free"
    )
    decoder_depth: int = option(
        2, "Accepted for old commands: DPT has its own", within="[0, inf)", on_resume="free"
    )


@dataclass(frozen=True)
class TaskonomyOptimOptions(FinetuneOptimOptions):
    """Optimiser and schedule."""

    lr: float = option(3e-4, "Absolute learning rate", within="(0, inf)")


@dataclass(frozen=True)
class TaskonomyRuntimeOptions(RuntimeOptions):
    """Run: duration, device, processes."""

    epochs: int = option(100, "Passes over the training set", within="[1, inf)")
    batch_size: int = option(32, "Images per GPU and batch", within="[1, inf)")


@dataclass(frozen=True)
class TaskonomyConfig(DenseFinetuneConfig):
    """Fine-tune for one or several of Taskonomy's dense tasks."""

    data: TaskonomyDataOptions = field(default_factory=TaskonomyDataOptions)
    model: TaskonomyModelOptions = field(default_factory=TaskonomyModelOptions)
    optim: TaskonomyOptimOptions = field(default_factory=TaskonomyOptimOptions)
    runtime: TaskonomyRuntimeOptions = field(default_factory=TaskonomyRuntimeOptions)

    def problems(self) -> Iterator[str]:
        """Test views that no option names."""
        yield from super().problems()
        if self.start.test and self.data.sources and not self.data.test_data_path:
            yield "test_data_path: name the folder of the test views; data_path is a list"

    @property
    def has_eval_set(self) -> bool:
        """Whether training evaluates; validation views are under --data_path, too."""
        return True

    @property
    def has_test_set(self) -> bool:
        """Whether the test views are scored; ``--test`` finds them under --data_path, too."""
        return bool(self.data.test_data_path) or self.start.test
