"""The configuration of ``tools/probe.py``."""

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
    """Data: what is read, and how."""

    data_path: str = option("", "Images to learn from, MODALITY/CLASS/NAME")
    eval_data_path: str = option("", "Images to score on, as above")
    num_workers: int = option(4, "Loader processes", within="[0, inf)")
    batch_size: int = option(64, "Images per batch", within="[1, inf)")
    crop_pct: float = option(
        224 / 256, "Share of the shortest side that the centre crop keeps", within="(0, 1]"
    )

    def problems(self) -> Iterator[str]:
        """Paths that are missing, or one for both sets."""
        yield from super().problems()
        if not self.data_path:
            yield "data_path: give the images to learn from"
        if not self.eval_data_path:
            yield "eval_data_path: give the images to score on"
        elif self.eval_data_path == self.data_path:
            yield "eval_data_path: is data_path; every image would find itself"
        if self.skips_bad:
            yield "on_bad_sample: skip is for training; fewer images would be another probe"


@dataclass(frozen=True)
class ProbeModelOptions(FinetuneModelOptions):
    """Model and weights."""

    weights: str = option("", "Pre-trained weights: a path or an https URL")
    random: bool = option(False, "Initial instead of pre-trained weights, as a baseline")
    model_key: str = option("model|module", "Where a checkpoint has its weights, by preference")
    model_prefix: str = option("", "Prefix of the weights' names to take off")
    model: str = option(
        "", f"multivit_*; empty: by the weights' width and depth, or {DEFAULT_MODEL} for --random"
    )
    num_global_tokens: int | None = option(  # type: ignore[assignment]
        None, "Learned tokens beside the patches; none: as in the weights, or 1", within="[0, inf)"
    )

    @property
    def start(self) -> StartOptions:
        """Where the weights are."""
        return StartOptions(
            finetune=self.weights, model_key=self.model_key, model_prefix=self.model_prefix
        )

    def problems(self) -> Iterator[str]:
        """No weights or two kinds of them, beside what every script checks."""
        # The size of the weights is not known yet: any model passes the checks of its name.
        yield from FinetuneModelOptions.problems(
            self if self.model else replace(self, model=DEFAULT_MODEL)
        )
        if not self.weights and not self.random:
            yield "weights: give pre-trained weights, or --random for a baseline without"
        if self.weights and self.random:
            yield "random: leaves no use for --weights; drop one of them"
        for problem in self.start.problems():
            yield problem.replace("finetune", "weights", 1)


@dataclass(frozen=True)
class FeatureOptions:
    """Features of an image."""

    pool: Literal["mean", "global", "mean_global"] = option(
        "mean", "Mean of the patch tokens, of the global tokens, or both side by side"
    )
    layers: int = option(1, "Last blocks whose features are put side by side", within="[1, inf)")
    token_norm: bool = option(
        True, "Normalise every token (LayerNorm without weights): the encoder ends without a norm"
    )


@dataclass(frozen=True)
class ClassifierOptions:
    """Classifiers on the features."""

    knn_k: tuple[int, ...] = option((1, 5, 20, 100), "Neighbours that vote", within="[1, inf)")
    knn_temperature: float = option(
        0.07, "Votes are weighted by exp(cosine similarity / this)", within="(0, inf)"
    )
    linear_l2: tuple[float, ...] = option(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        "Strengths of L2 to choose from",
        within="[0, inf)",
    )
    linear_iterations: int = option(500, "Largest number of L-BFGS steps", within="[1, inf)")
    held_out: float = option(
        0.2, "Share of every training class that chooses the strength", within="(0, 1)"
    )

    def problems(self) -> Iterator[str]:
        """Empty grids."""
        for name in ("knn_k", "linear_l2"):
            if not getattr(self, name):
                yield f"{name}: give at least one number"


@dataclass(frozen=True)
class ProbeRuntimeOptions:
    """Run."""

    device: str = option(default_device, "cuda, cuda:N, cpu or mps")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "auto", "Autocast type of the encoder; auto: the best the device has"
    )
    seed: int = option(0, "Seed of the held-out images and of --random", within="[0, inf)")
    num_threads: int | None = option(
        None, "CPU threads of PyTorch; none: its own", within="[1, inf)"
    )
    output_json: str = option("", "File for the results; they are printed in any case")

    def problems(self) -> Iterator[str]:
        """Devices that do not exist in PyTorch."""
        yield from device_problems(self.device)


@dataclass(frozen=True)
class ProbeConfig:
    """Score frozen features by nearest neighbours and by a linear probe."""

    data: ProbeDataOptions = field(default_factory=ProbeDataOptions)
    model: ProbeModelOptions = field(default_factory=ProbeModelOptions)
    features: FeatureOptions = field(default_factory=FeatureOptions)
    classifiers: ClassifierOptions = field(default_factory=ClassifierOptions)
    runtime: ProbeRuntimeOptions = field(default_factory=ProbeRuntimeOptions)
