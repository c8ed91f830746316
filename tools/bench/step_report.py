"""Benchmark of the training step: time and work of every contender, and a report."""

from __future__ import annotations

import copy
import platform
import resource
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from multimae.images.preprocess import prepare
from tools.bench.contenders import Contender, fast, plain, pretraining, synthetic_batch, vit_mae
from tools.bench.counting import StepWork, measure_work
from tools.bench.equality import step_gaps
from tools.bench.kernels import bandwidth, floors, kernel_report, kernel_rows
from tools.bench.step_options import StepBenchConfig
from tools.bench.timing import Ceiling, ProductTimes, Times, interleaved, seconds, shares, speed_up
from utils.config.options import RuntimeOptions
from utils.config.pretrain_options import PretrainConfig
from utils.distributed.world import World, init_world
from utils.tasks.base import StepPosition
from utils.tasks.pretraining import PretrainTask, pretrain_optimizer
from utils.training.compilation import compile_options
from utils.training.seeding import seed_everything

Row = dict[str, Any]


def bench_step(cfg: StepBenchConfig) -> Row:
    """Time the product's step and the baselines in one process, on one device."""
    b = cfg.bench
    world = init_world(RuntimeOptions(device=b.device, num_threads=b.num_threads))
    seed_everything(0)
    options, task = pretraining(cfg)
    contenders = [fast(cfg, task, world)]
    if b.bases or b.check:
        contenders.append(plain(cfg, task, world))
    if b.bases and find_spec("transformers") is not None:
        contenders.append(vit_mae(cfg, world))
    work = {c.name: measure_work(partial(c.update, 0), partial(_forward, c)) for c in contenders}
    if b.sharded:
        join_alone(world)
        contenders.append(fast(cfg, copy.deepcopy(task), world, sharded=True))
        work["sharded"] = work["fast"]
    if b.compile:
        task.compile_step(**compile_options(options.runtime))
    gaps = step_gaps(contenders[0], contenders[1]) if b.check else None
    dtypes = {c.name: c.precision.dtype or torch.float32 for c in contenders}
    products = ProductTimes(
        ((p, dtypes[name]) for name, w in work.items() for p in w.products), world.device
    )
    updates = {c.name: c.update for c in contenders}
    times = interleaved(updates, b.steps, b.warmup, world.device, products.measure)
    ceilings = {name: products.ceiling(w.products, dtypes[name]) for name, w in work.items()}
    rows = {
        c.name: _row(times[c.name], work[c.name], ceilings[c.name], b.batch) for c in contenders
    }
    optimiser = _optimiser_seconds(options, task, contenders[0], world)
    result: Row = {
        "model": b.model, "batch": b.batch, "input_size": b.input_size,
        "num_encoded_tokens": b.num_encoded_tokens, "in_domains": b.in_domains,
        "precision": str(contenders[0].precision), "compile": b.compile,
        "compile_mode": b.compile_mode,
        "grad_checkpointing": b.grad_checkpointing, **_machine(world), "steps": b.steps, **rows,
        "optimiser_s": optimiser, "optimiser_of_step": optimiser / times["fast"].best,
        "shares": _shares(cfg, task, contenders[0], world, optimiser),
    }  # fmt: skip
    if gaps is not None:
        result["gap"] = gaps
    if b.kernels:
        rows_k = kernel_rows(contenders[0].update, world.device)
        count = sum(p.numel() for p in contenders[0].parameters)
        least = floors(work["fast"], count, ceilings["fast"].wall, bandwidth(world.device))
        Path(b.kernels).write_text(kernel_report(rows_k, least) + "\n", encoding="utf-8")
    if "plain" in times:
        result["speed_up"] = speed_up(times["fast"].wall, times["plain"].wall)
        result["speed_up_cpu_time"] = speed_up(times["fast"].cpu, times["plain"].cpu)
    return result


def _forward(contender: Contender) -> Tensor:
    with contender.precision.autocast():
        return contender.forward(0)


def join_alone(world: World) -> None:
    """Join a process group of this process alone, which FSDP needs."""
    if not dist.is_initialized():
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        url = f"file://{tempfile.mkdtemp()}/store"
        dist.init_process_group(backend, init_method=url, rank=0, world_size=1)


def _row(times: Times, work: StepWork, ceiling: Ceiling, batch: int) -> Row:
    rate = work.flops / times.best
    return {
        "step_s": times.best,
        "median_s": times.median,
        "cpu_s": min(times.cpu),
        "images_per_s": batch / times.best,
        "tflop": work.flops / 1e12,
        "tflop_per_s": rate / 1e12,
        "matmul_tflop_per_s": ceiling.wall / 1e12,
        "mfu": rate / ceiling.wall,
        "mfu_cpu_time": work.flops / min(times.cpu) / ceiling.cpu,
        "saved_mb": work.saved_bytes / 1e6,
        "host_syncs": work.host_syncs.total(),
    }


def _optimiser_seconds(
    options: PretrainConfig, task: PretrainTask, contender: Contender, world: World
) -> float:
    """Time of an optimizer step, with learning rate 0."""
    optimizer = pretrain_optimizer(options, task)
    for p in contender.parameters:
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.0
    return seconds(optimizer.step, world.device, repeats=2).wall


def _shares(
    cfg: StepBenchConfig,
    task: PretrainTask,
    contender: Contender,
    world: World,
    optimiser_seconds: float,
) -> dict[str, float]:
    b = cfg.bench
    x = prepare(synthetic_batch(list(task.inputs), b.input_size, b.batch).images, task.modalities)
    x = {name: value.to(world.device) for name, value in x.items()}
    layout = task.model.layout_of({m.name: x[m.name] for m in task.inputs})
    masks = task.masks.draw(layout, StepPosition(0, 0, b.batch), b.batch, world.device)
    return shares(task, x, masks, contender.precision, optimiser_seconds)


def _machine(world: World) -> Row:
    device = world.device
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    row: Row = {
        "device": str(device),
        "hardware": name,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        row["peak_gpu_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    else:
        row["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return row


def report(result: Row) -> str:
    """Format the result as a text table."""
    names = [n for n in ("fast", "sharded", "plain", "ViTMAE") if n in result]
    columns = ("step_s", "cpu_s", "images_per_s", "tflop", "tflop_per_s", "matmul_tflop_per_s",
               "mfu", "mfu_cpu_time", "saved_mb", "host_syncs")  # fmt: skip
    lines = [f"{'':<20}" + "".join(f"{name:>12}" for name in names)]
    lines += [
        f"{key:<20}" + "".join(f"{result[name][key]:12.4g}" for name in names) for key in columns
    ]
    parts = ", ".join(f"{name} {value:.1%}" for name, value in result["shares"].items())
    lines += [
        f"parts of the fast step, not compiled: {parts}",
        f"optimizer: {result['optimiser_s']:.3g} s, {result['optimiser_of_step']:.1%} of a step",
    ]
    if "gap" in result:
        gap = result["gap"]
        lines.append(f"largest difference: loss {gap['loss']:.1e}, gradient {gap['gradient']:.1e}")
    if "speed_up" in result:
        lines += [
            f"speed-up over plain, {clock}: {ratio['best']:.2f}x (fastest steps), "
            f"{ratio['median']:.2f}x (median of rounds)"
            for clock, ratio in (
                ("wall time", result["speed_up"]),
                ("CPU time", result["speed_up_cpu_time"]),
            )
        ]
    return "\n".join(lines)
