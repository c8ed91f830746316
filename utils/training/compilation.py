"""Compilation of the training step (``--compile``).

A replicated task is two graphs: masks and what the losses count, then model and losses. Of a
sharded model, blocks and heads are graphs, between which FSDP gathers weights. The random numbers
of masks, Mixup and erasing are drawn outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.compiler.config
from torch import nn

from multimae.nn.network import MultiModalTransformer
from utils.config.runtime_options import RuntimeOptions

Backend = str | Callable[..., Any]


def compile_options(runtime: RuntimeOptions, backend: Backend = "inductor") -> dict[str, Any]:
    """Options of :func:`torch.compile`; a graph break is an error.

    A second batch size makes the second graph of a region, with a symbolic size.
    """
    mode = None if runtime.compile_mode == "default" else runtime.compile_mode
    return {"backend": backend, "mode": mode, "fullgraph": True}


def kernel_problems(runtime: RuntimeOptions) -> Iterator[str]:
    """Why CUDA graphs cannot be captured, or kernels of attention not be chosen."""
    if runtime.attention == "auto" and runtime.deterministic:
        yield "attention: auto times kernels, which is not deterministic; name one"
    elif runtime.attention not in ("default", "auto") and not runtime.device.startswith("cuda"):
        yield f"attention: {runtime.attention} is a kernel of GPUs; device is {runtime.device}"
    name = f"compile_mode: {runtime.compile_mode}"
    if runtime.compile_mode == "default":
        return
    if not runtime.compile:
        yield f"{name} needs compile"
    elif runtime.parallel == "fsdp":
        yield (
            f"{name} captures CUDA graphs, whose weights must keep their addresses; parallel fsdp "
            "moves them: use compile_mode default"
        )
    elif not runtime.device.startswith("cuda"):
        yield f"{name} captures CUDA graphs; device is {runtime.device}"


def compile_parts(model: nn.Module, **options: Any) -> None:
    """Compile blocks and output adapters in place, before they are sharded.

    Methods are replaced, not modules: keys of the weights stay, and FSDP's hooks run outside of the
    graphs. A copy of the model would still run the methods of the original.
    """
    assert isinstance(model, MultiModalTransformer)
    parts = (*model.encoder, *model.output_adapters.values())
    # Blocks share a graph, but for their drop-path rates; each may have a second batch size.
    torch.compiler.config.recompile_limit = 8 + 2 * len(parts)
    for part in parts:
        for name in ("forward", "forward_patches"):
            if hasattr(part, name):
                setattr(part, name, torch.compile(getattr(part, name), **options))
