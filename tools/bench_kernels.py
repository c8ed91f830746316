"""Time alternatives of single kernels: attention, the MLP's product, the sort of depth values.

    python tools/bench_kernels.py --model base --batch 256 --device cuda

The last line printed is JSON, in milliseconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.registry import SIZES
from tools.bench.timing import seconds
from utils.logs.attention_backend import BACKENDS, attention_seconds

TOKENS, DECODER = 99, (8, 196, 99, 32)
"""Encoder tokens; heads, queries, keys and head width of a decoder."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = CommandParser(__doc__)
    parser.add_argument("--model", default="base")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--side", type=int, default=224, help="of depth maps")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output_json", type=Path, help="also write the result to this file")
    args = parser.parse_args(argv)
    device, size = torch.device(args.device), SIZES[args.model]
    heads = int(size["num_heads"])
    encoder = (heads, TOKENS, TOKENS, int(size["dim_tokens"]) // heads)
    found = {
        "encoder attention": attention_ms(args.batch, encoder, device),
        "decoder attention": attention_ms(args.batch, DECODER, device),
        "product of the MLP": product_ms(args.batch * TOKENS, int(size["dim_tokens"]), device),
        "depth statistics": sort_ms(args.batch, args.side, device),
    }
    if args.output_json:
        args.output_json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(json.dumps(found))


def attention_ms(
    batch: int, shape: tuple[int, int, int, int], device: torch.device
) -> dict[str, float | None]:
    """Forward and backward pass in bf16 by backend; ``None`` where it does not run."""
    heads, queries, keys, width = shape
    query, key = (torch.Size((batch, heads, tokens, width)) for tokens in (queries, keys))
    times: dict[str, float | None] = {}
    for name, backend in BACKENDS.items():
        found = attention_seconds(name, {(query, key): 1}, torch.bfloat16, device)
        times[backend.name.lower()] = None if found is None else 1e3 * found
    return times


def product_ms(rows: int, width: int, device: torch.device) -> dict[str, float | None]:
    """``(rows, width) x (width, 4 width)`` in bf16 and in fp8, which has one scale per tensor."""
    x = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
    w = torch.randn(4 * width, width, device=device, dtype=torch.bfloat16)

    def to_fp8(tensor: Tensor) -> tuple[Tensor, Tensor]:
        scale = tensor.abs().amax().float() / torch.finfo(torch.float8_e4m3fn).max
        return (tensor / scale).to(torch.float8_e4m3fn), scale

    def multiply(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
        (a, a_scale), (b, b_scale), one = left, right, ScalingType.TensorWise
        return F.scaled_mm(a, b.t(), a_scale, one, b_scale, one, output_dtype=torch.bfloat16)

    ready = to_fp8(x), to_fp8(w)
    candidates: dict[str, Callable[[], Tensor]] = {
        "bf16": lambda: x @ w.t(),
        "fp8": lambda: multiply(*ready),
        "fp8 with its casts": lambda: multiply(to_fp8(x), to_fp8(w)),
    }
    times: dict[str, float | None] = {}
    for name, run in candidates.items():
        try:
            times[name] = milliseconds(run, device)
        except RuntimeError:  # not on this device
            times[name] = None
    return times


def sort_ms(batch: int, side: int, device: torch.device) -> dict[str, float]:
    """Sort the values of depth maps: as float32, as now, and as 16-bit integers."""
    depth = torch.randint(0, 32768, (batch, side * side), device=device, dtype=torch.int16)
    real = depth.float()
    return {
        "sort float32": milliseconds(lambda: real.sort(dim=1), device),
        "sort int16": milliseconds(lambda: depth.sort(dim=1), device),
    }


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Shortest time of a call."""
    return 1e3 * seconds(run, device).wall


if __name__ == "__main__":
    run_command(main)
