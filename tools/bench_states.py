"""Train a model with optimizer states in float32 and in bf16: loss and time of both.

    python tools/bench_states.py --model base --batch 64 --steps 500 --data_path data/rooms/train

The last line printed is JSON: by format and seed, the mean loss of the last tenth of the steps and
milliseconds per step. Optimizer states take a tenth of a step at most (docs/notes/MEASUREMENTS.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from tools.bench.timing import synchronize
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.data.batches import Batch, collate
from utils.data.dataset import MultiModalDataset
from utils.data.samplers import SampleKey
from utils.distributed.world import init_world
from utils.tasks.base import StepPosition
from utils.tasks.pretraining import build_task, build_train_set, run_modalities
from utils.training.seeding import seed_everything
from utils.training.stepper import choose_precision

FORMATS = ("float32", "bf16 states", "bf16 weights and states")
BATCHES = 16  # decoded once


class LowPrecisionAdamW(torch.optim.Optimizer):
    """AdamW that stores its moments in bf16 and computes in float32."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], decay: float) -> None:
        """Rate, betas and weight decay."""
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": decay})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights."""
        self.steps += 1
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            scale = group["lr"] / (1 - beta1**self.steps)
            for p in (p for p in group["params"] if p.grad is not None):
                if not self.state[p]:
                    self.state[p] = {
                        name: torch.zeros_like(p, dtype=torch.bfloat16) for name in ("m", "v")
                    }
                state, gradient = self.state[p], p.grad.float()
                m = state["m"].float().lerp_(gradient, 1 - beta1)
                v = state["v"].float().lerp_(gradient.square(), 1 - beta2)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.addcdiv_(m, (v / (1 - beta2**self.steps)).sqrt_().add_(1e-8), value=-scale)
                state["m"].copy_(m)
                state["v"].copy_(v)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = CommandParser(__doc__)
    parser.add_argument("--model", default="base")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--input_size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--data_path", required=True, help="rooms")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output_json", type=Path, help="also write the result to this file")
    args = parser.parse_args(argv)
    cfg = parse_config(
        PretrainConfig,
        [
            *("--data_path", args.data_path, "--device", args.device, "--standardize_depth"),
            *("--model", f"pretrain_multimae_{args.model}", "--input_size", str(args.input_size)),
            *("--num_encoded_tokens", str(args.input_size**2 // 512), "--num_workers", "0"),
            *("--modalities", "{semseg: {num_classes: 41}}", "--batch_size", str(args.batch)),
        ],
    )
    batches = load(cfg, args.batch)
    rows = []
    for seed in range(args.seeds):
        for name in FORMATS:
            rows.append({"format": name, "seed": seed, **run(cfg, batches, name, seed, args)})
            print(rows[-1], flush=True)
            if args.output_json:  # after each run: time may be up before the last
                args.output_json.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    print(json.dumps(rows))


def load(cfg: PretrainConfig, size: int) -> list[Batch]:
    """A few batches, on the device."""
    inputs, outputs = run_modalities(cfg)
    dataset: MultiModalDataset = build_train_set(cfg, tuple(dict.fromkeys((*inputs, *outputs))))
    device = torch.device(cfg.runtime.device)
    count = max(1, min(BATCHES, len(dataset) // size))
    keys = [[(b * size + i) % len(dataset) for i in range(size)] for b in range(count)]
    return [collate([dataset[SampleKey(0, i)] for i in of]).to(device) for of in keys]


def run(
    cfg: PretrainConfig, batches: Sequence[Batch], name: str, seed: int, args: argparse.Namespace
) -> dict[str, float]:
    """Train; mean loss of the last tenth of the steps, and milliseconds per step."""
    seed_everything(seed)
    device = init_world(cfg.runtime).device
    task = build_task(cfg, *run_modalities(cfg)).to(device)
    low = name == FORMATS[2]
    if low:
        task.to(torch.bfloat16)
    make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    options: dict[str, Any] = {"lr": 5e-4, "betas": (0.9, 0.95)}
    if name == FORMATS[1]:
        optimizer: torch.optim.Optimizer = LowPrecisionAdamW(
            task.parameters(), **options, decay=0.05
        )
    else:
        optimizer = make(task.parameters(), **options, weight_decay=0.05, fused=True)
    if args.compile:
        task.compile_step()
    precision = choose_precision("bf16", device)
    losses, begin, warm = [], 0.0, max(1, args.steps // 10)
    for step in range(args.steps):
        if step == warm:
            synchronize(device)
            begin = time.perf_counter()
        with precision.autocast():
            loss = task(batches[step % len(batches)], StepPosition(step, 0, args.batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    synchronize(device)
    ms = 1e3 * (time.perf_counter() - begin) / max(1, args.steps - warm)
    return {"loss": statistics.mean(float(x) for x in losses[-warm:]), "ms": ms}


if __name__ == "__main__":
    run_command(main)
