"""Step time against problem size, with one setting varied at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tools.bench.contenders import fast, pretraining
from tools.bench.step_options import EXTRA, StepBenchConfig
from tools.bench.timing import interleaved
from utils.config.options import RuntimeOptions
from utils.distributed.world import init_world
from utils.logs.efficiency import count_flops
from utils.training.compilation import compile_options
from utils.training.seeding import seed_everything

TOKENS = (49, 98, 196)
SIZES = (224, 320, 384, 512)
COLUMNS = ("varied", "tokens", "modalities", "input_size", "batch", "step_s", "cpu_s", "tflop")
_MODALITIES = ("rgb", "depth", "semseg", *EXTRA)

Row = dict[str, Any]


def variations(cfg: StepBenchConfig) -> Iterator[tuple[str, StepBenchConfig]]:
    """Yield the varied setting and the configuration; ``--batch`` is fixed but for the last one."""

    def vary(**changes: Any) -> StepBenchConfig:
        return replace(cfg, bench=replace(cfg.bench, **changes))

    sides = [*SIZES, cfg.bench.input_size]
    num_tokens = (cfg.bench.input_size // 16) ** 2 * len(cfg.bench.in_domains.split("-"))
    for count in (n for n in TOKENS if n < num_tokens or n == TOKENS[0]):
        yield "tokens", vary(num_encoded_tokens=min(count, num_tokens))
    for count in range(1, len(_MODALITIES) + 1):
        yield "modalities", vary(in_domains="-".join(_MODALITIES[:count]))
    for size in sorted({s for s in sides if s <= cfg.bench.largest_size}):
        yield "input_size", vary(input_size=size)
    batch = 1
    while batch <= cfg.bench.largest_batch:
        yield "batch", vary(batch=batch)
        batch *= 2


def cost_table(cfg: StepBenchConfig) -> Iterator[Row]:
    """Yield step time and FLOPs of the product's step for every variation."""
    b = cfg.bench
    world = init_world(RuntimeOptions(device=b.device, num_threads=b.num_threads))
    for kind, varied in variations(cfg):
        seed_everything(0)
        _, task = pretraining(varied)
        contender = fast(varied, task, world)

        def backward(c: Any = contender) -> None:
            with c.precision.autocast():
                loss = c.forward(0)
            loss.backward()

        flops = count_flops(backward)
        if b.compile:
            task.compile_step(**compile_options(varied.pretrain_config().runtime))
        times = interleaved({"fast": contender.update}, b.steps, b.warmup, world.device)["fast"]
        v = varied.bench
        yield {
            "varied": kind, "tokens": v.num_encoded_tokens,
            "modalities": len(v.in_domains.split("-")), "input_size": v.input_size,
            "batch": v.batch, "step_s": times.best, "cpu_s": min(times.cpu),
            "tflop": flops / 1e12,
        }  # fmt: skip


def table_line(row: Row | None = None) -> str:
    """Format a row; without one, the column names."""
    if row is None:
        return "".join(f"{name:>12}" for name in COLUMNS)
    return "".join(
        f"{row[c]:>12.4g}" if isinstance(row[c], float) else f"{row[c]:>12}" for c in COLUMNS
    )
