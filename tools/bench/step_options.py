"""Configuration of ``tools/bench_step.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from multimae.specs.coercion import did_you_mean
from multimae.specs.registry import SIZES
from utils.config.fields import option
from utils.config.options import default_device, device_problems
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig

EXTRA = ("extra1", "extra2", "extra3")
"""Further three-channel modalities for ``--in_domains``."""


@dataclass(frozen=True)
class StepBenchOptions:
    """Options of the benchmark."""

    model: str = option("base", f"Encoder: {', '.join(SIZES)}")
    batch: int = option(48, "Images per step", within="[1, inf)")
    in_domains: str = option("rgb-depth-semseg", "Input and output modalities, joined by '-'")
    input_size: int = option(224, "Image side in pixels", within="[16, inf)")
    num_encoded_tokens: int = option(98, "Visible patches", within="[1, inf)")
    device: str = option(default_device, "cuda, cuda:N or cpu")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option("auto", "Autocast dtype")
    plain_precision: Literal["", "bf16", "fp16", "fp32"] = option(
        "", "Autocast dtype of the plain step; empty: as the fast step"
    )
    compile: bool = option(False, "Compile the fast step")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = option(
        "default", "How, as in the training scripts"
    )
    sharded: bool = option(False, "Also time the fast step under FSDP, in a group of one process")
    check: bool = option(False, "Also compare losses and gradients with the plain step")
    kernels: str = option("", "Profile the fast step; write its kernels to this file")
    grad_checkpointing: bool | Literal["selective"] = option(
        False, "Recompute activations in the fast step"
    )
    bases: bool = option(True, "Also time the baselines: the plain step and transformers' ViTMAE")
    steps: int = option(3, "Timed steps per contender", within="[1, inf)")
    warmup: int = option(1, "Untimed steps per contender", within="[0, inf)")
    num_threads: int | None = option(
        None, "CPU threads; none: PyTorch's default", within="[1, inf)"
    )
    table: bool = option(
        False, "Tabulate step times by tokens, modalities, image size and batch instead"
    )
    largest_size: int = option(512, "Largest image side in the table", within="[16, inf)")
    largest_batch: int = option(512, "Largest batch in the table", within="[1, inf)")
    output_json: str = option("", "Also write the results to this file")

    def problems(self) -> Iterator[str]:
        """Check model size, device and image size."""
        if self.model not in SIZES:
            yield f"model: unknown '{self.model}'{did_you_mean(self.model, list(SIZES))}"
        yield from device_problems(self.device)
        if self.input_size % 16:
            yield f"input_size: {self.input_size} is not divisible by 16"


@dataclass(frozen=True)
class StepBenchConfig:
    """Time full pre-training steps on synthetic images."""

    bench: StepBenchOptions = field(default_factory=StepBenchOptions)

    def pretrain_config(self) -> PretrainConfig:
        """Configuration of the equivalent ``run_pretraining_multimae.py`` run."""
        b = self.bench
        extra = [name for name in EXTRA if name in b.in_domains.split("-")]
        return parse_config(
            PretrainConfig,
            [
                *("--in_domains", b.in_domains, "--out_domains", b.in_domains),
                *("--model", f"pretrain_multimae_{b.model}", "--batch_size", str(b.batch)),
                *("--input_size", str(b.input_size), "--device", b.device),
                *("--num_encoded_tokens", str(b.num_encoded_tokens)),
                *("--precision", b.precision, "--warmup_epochs", "0", "--epochs", "1"),
                *(("--compile", "--compile_mode", b.compile_mode) if b.compile else ()),
                *(
                    "--modalities",
                    str({name: {"num_channels": 3} for name in extra}),
                ),
            ],
        )
