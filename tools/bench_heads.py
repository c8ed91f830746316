"""Time fine-tuning steps with every dense head, and with the encoder alone.

    python tools/bench_heads.py --model tiny --input_size 128 --batch 8

A step is forward pass, cross-entropy of 40 classes and backward pass on random images. Feature maps
are channels last; "by channel" stores the ConvNeXt head's maps channel by channel, as PyTorch does
by default. Contenders take turns in one process. Results: docs/notes/MEASUREMENTS.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae.multimae import MultiViT
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.heads import HeadOptions, dense_head
from multimae.specs.modalities import make_table, select
from multimae.specs.registry import SIZES, input_adapters
from tools.bench.timing import interleaved

CLASSES = 40
HEADS = {
    "segmenter": HeadOptions("segmenter", dim=192, depth=1),
    "convnext": HeadOptions("convnext", dim=1024, depth=2),
    "dpt": HeadOptions("dpt"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: time the contenders, print a table."""
    parser = CommandParser(__doc__)
    parser.add_argument("--model", choices=SIZES, default="tiny", help="encoder")
    parser.add_argument("--input_size", type=int, default=128, help="image side in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps per contender")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    steps = {
        name: _step(model.to(device), args.input_size, args.batch, device)
        for name, model in contenders(args.model, args.input_size).items()
    }
    times = interleaved(steps, args.steps, 1, device)
    encoder = times["encoder alone"].best
    print(f"{'head':<22}{'ms':>9}{'img/s':>9}{'above the encoder':>20}")
    for name, time in times.items():
        extra = f"{1e3 * (time.best - encoder):.0f} ms"
        print(f"{name:<22}{1e3 * time.best:>9.0f}{args.batch / time.best:>9.1f}{extra:>20}")


def contenders(size: str, input_size: int) -> dict[str, nn.Module]:
    """Models by the name of their head."""
    models: dict[str, nn.Module] = {"encoder alone": _model(size, input_size, None)}
    for name, options in HEADS.items():
        models[name] = _model(size, input_size, options)
    by_channel = _model(size, input_size, HEADS["convnext"])
    blocks = by_channel.get_submodule("output_adapters.labels.blocks")
    blocks.register_forward_pre_hook(_by_channel)
    models["convnext, by channel"] = by_channel
    return models


def _model(size: str, input_size: int, options: HeadOptions | None) -> MultiViT:
    torch.manual_seed(0)
    head = options and dense_head(options, CLASSES, model=f"multivit_{size}", labels=True)
    inputs = input_adapters(select(make_table(), ["rgb"]), 16, input_size)
    heads = {"labels": head} if head else None
    return MultiViT(input_adapters=inputs, output_adapters=heads, **cast(Any, SIZES[size]))


def _by_channel(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    del module
    return inputs[0].contiguous()


def _step(
    model: nn.Module, input_size: int, batch: int, device: torch.device
) -> Callable[[int], None]:
    images = torch.randn(batch, 3, input_size, input_size, device=device)
    labels = torch.randint(CLASSES, (batch * input_size**2,), device=device)

    def step(index: int) -> None:
        del index
        outputs = model({"rgb": images}, return_all_layers=True)
        if isinstance(outputs, dict):
            logits = outputs["labels"].movedim(1, -1).flatten(0, -2)
            loss = F.cross_entropy(logits, labels)
        else:
            loss = outputs[-1].square().mean()
        model.zero_grad()
        torch.autograd.backward(loss)

    return step


if __name__ == "__main__":
    run_command(main)
