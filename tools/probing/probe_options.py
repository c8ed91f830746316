"""Options of ``tools/probe.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from utils.config.fields import option
from utils.config.finetune_options import FinetuneModelOptions
from utils.config.options import DataOptions, StartOptions, default_device, device_problems

DEFAULT_MODEL = "multivit_base"


@dataclass(frozen=True)
class ProbeDataOptions(DataOptions):
    """Data."""

    data_path: str = option("", "Training images, MODALITY/CLASS/NAME")
    eval_data_path: str = option("", "Test images, MODALITY/CLASS/NAME")
    num_workers: int = option(4, "Loader worker processes", within="[0, inf)")
    batch_size: int = option(64, "Images per batch", within="[1, inf)")
    crop_pct: float = option(
        224 / 256, "Centre crop, as a fraction of the shorter side", within="(0, 1]"
    )

    def problems(self) -> Iterator[str]:
        """Missing or identical paths, and skipped samples."""
        yield from super().problems()
        if not self.data_path:
            yield "data_path: the folder of training images is required"
        if not self.eval_data_path:
            yield "eval_data_path: the folder of test images is required"
        elif self.eval_data_path == self.data_path:
            yield "eval_data_path: is data_path; every image would find itself"
        if self.skips_bad:
            yield "on_bad_sample: skip is for training; the probe must use all images"


@dataclass(frozen=True)
class ProbeModelOptions(FinetuneModelOptions):
    """Model and weights."""

    weights: str = option("", "Pre-trained weights: a path or an https URL")
    random: bool = option(False, "Use random weights, as a baseline")
    model_key: str = option("model|module", "Keys of the weights in a checkpoint, first match wins")
    model_prefix: str = option("", "Prefix to remove from the weights' names")
    model: str = option(
        "", f"multivit_*; empty: inferred from the weights, or {DEFAULT_MODEL} with --random"
    )
    num_global_tokens: int | None = option(  # type: ignore[assignment]
        None, "Learned global tokens; none: as in the weights, or 1", within="[0, inf)"
    )

    @property
    def start(self) -> StartOptions:
        """Options of the weight file."""
        return StartOptions(
            finetune=self.weights, model_key=self.model_key, model_prefix=self.model_prefix
        )

    def problems(self) -> Iterator[str]:
        """Missing or contradictory weights, and the problems of fine-tuning options."""
        # The size is not known before the weights are read: check with any model.
        yield from FinetuneModelOptions.problems(
            self if self.model else replace(self, model=DEFAULT_MODEL)
        )
        if not self.weights and not self.random:
            yield "weights: set pre-trained weights, or --random for a baseline"
        if self.weights and self.random:
            yield "random: cannot be combined with --weights"
        for problem in self.start.problems():
            yield problem.replace("finetune", "weights", 1)


@dataclass(frozen=True)
class FeatureOptions:
    """Features of an image."""

    pool: Literal["mean", "global", "mean_global"] = option(
        "mean", "Mean of patch tokens, of global tokens, or both concatenated"
    )
    layers: int = option(1, "Last n blocks whose features are concatenated", within="[1, inf)")
    token_norm: bool = option(
        True, "Normalise every token (LayerNorm without weights): the encoder ends without a norm"
    )


@dataclass(frozen=True)
class ClassifierOptions:
    """Classifiers on the features."""

    knn_k: tuple[int, ...] = option((1, 5, 20, 100), "Numbers of neighbours", within="[1, inf)")
    knn_temperature: float = option(
        0.07, "Votes are weighted by exp(cosine similarity / temperature)", within="(0, inf)"
    )
    linear_l2: tuple[float, ...] = option(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        "L2 strengths to try",
        within="[0, inf)",
    )
    linear_iterations: int = option(500, "Maximum number of L-BFGS steps", within="[1, inf)")
    held_out: float = option(
        0.2, "Fraction of every training class held out to select the L2 strength", within="(0, 1)"
    )

    def problems(self) -> Iterator[str]:
        """Empty grids."""
        for name in ("knn_k", "linear_l2"):
            if not getattr(self, name):
                yield f"{name}: needs at least one number"


@dataclass(frozen=True)
class ProbeRuntimeOptions:
    """Run."""

    device: str = option(default_device, "cuda, cuda:N, cpu or mps")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "auto", "Autocast dtype of the encoder; auto: the best the device supports"
    )
    seed: int = option(0, "Seed of the held-out split and of --random", within="[0, inf)")
    num_threads: int | None = option(
        None, "CPU threads of PyTorch; none: PyTorch's default", within="[1, inf)"
    )
    output_json: str = option("", "File for the results, which are also printed")

    def problems(self) -> Iterator[str]:
        """Unknown devices."""
        yield from device_problems(self.device)


@dataclass(frozen=True)
class ProbeConfig:
    """Evaluate frozen features by nearest neighbours and a linear probe."""

    data: ProbeDataOptions = field(default_factory=ProbeDataOptions)
    model: ProbeModelOptions = field(default_factory=ProbeModelOptions)
    features: FeatureOptions = field(default_factory=FeatureOptions)
    classifiers: ClassifierOptions = field(default_factory=ClassifierOptions)
    runtime: ProbeRuntimeOptions = field(default_factory=ProbeRuntimeOptions)
