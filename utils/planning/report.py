"""The plan as a table, as flags and as one line of JSON."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from utils.planning.advice import Advice
from utils.planning.machine import describe, size
from utils.planning.setup import Run


def suggestion(run: Run, advice: Advice) -> dict[str, Any]:
    """Options to run with, by flag."""
    options: dict[str, Any] = {
        "batch_size": advice.best.batch_size,
        "update_freq": advice.plan.accum_steps,
        "num_workers": advice.measured.together.num_workers,
        "precision": str(run.precision),
    }
    if advice.num_threads:
        options["num_threads"] = advice.num_threads
    return options


def table(run: Run, advice: Advice) -> str:
    """Everything for people."""
    measured, plan, disk = advice.measured, advice.plan, advice.disk
    loader = [f"{rate:.4g} with {n}" for n, rate in measured.loader.items()]
    steps = [
        f"{p.batch_size}: {p.images_per_s:.4g} ({size(p.memory)})" for p in measured.steps.probes
    ]
    stop = f"; no larger: {measured.steps.stopped}" if measured.steps.stopped else ""
    kept = f"{disk.checkpoints} checkpoints of {size(disk.checkpoint)}"
    short = disk.total > disk.free
    flags = " ".join(f"--{name} {value}" for name, value in suggestion(run, advice).items())
    processes = f"{advice.processes} process" + ("es" if advice.processes > 1 else "")
    rows = {
        "machine": describe(run.world.device),
        "data": f"{len(run.train_set)} images; img/s by workers: {', '.join(loader)}",
        "step": f"img/s and peak memory by batch: {', '.join(steps)}{stop}",
        "threads": ", ".join(f"{rate:.4g} img/s with {n}" for n, rate in measured.threads.items()),
        "together": f"{measured.together.images_per_s:.4g} img/s in one process, "
        f"{measured.together.data_wait:.0%} of it waiting for data",
        "bottleneck": advice.bottleneck,
        "suggestion": f"{processes}, each with {flags}",
        "run": plan.describe(),
        "time": f"{_duration(advice.eta)} at {advice.images_per_s:.4g} img/s, without evaluation",
        "disk": f"{size(disk.total)}: {kept}, {size(disk.weights)} of weights, up to "
        f"{size(disk.pictures)} of pictures; {size(disk.free)} free"
        + (" - TOO LITTLE" if short else ""),
    }
    return "\n".join(f"{name:<12}{text}" for name, text in rows.items() if text)


def as_json(run: Run, advice: Advice) -> dict[str, Any]:
    """Everything for programs; sizes in bytes, times in seconds."""
    measured, plan, disk = advice.measured, advice.plan, advice.disk
    return {
        "model": run.cfg.model.model,
        "device": run.world.device.type,
        "processes": advice.processes,
        "train_images": len(run.train_set),
        "loader_images_per_s": {str(n): round(r, 2) for n, r in measured.loader.items()},
        "steps": [
            {
                "batch_size": p.batch_size,
                "images_per_s": round(p.images_per_s, 2),
                "memory": p.memory,
            }
            for p in measured.steps.probes
        ],
        "threads_images_per_s": {str(n): round(r, 2) for n, r in measured.threads.items()},
        "data_wait": round(measured.together.data_wait, 4),
        "bottleneck": advice.bottleneck.partition(":")[0],
        "suggestion": suggestion(run, advice),
        "global_batch": plan.global_batch,
        "lr": plan.lr,
        "epochs": plan.epochs,
        "total_steps": plan.total_steps,
        "images_per_s": round(advice.images_per_s, 2),
        "eta": round(advice.eta, 1),
        "checkpoint": disk.checkpoint,
        "checkpoints": disk.checkpoints,
        "disk": disk.total,
        "disk_free": disk.free,
    }


def _duration(seconds: float) -> str:
    """``2 days, 3:04:05``."""
    return str(timedelta(seconds=round(seconds)))
