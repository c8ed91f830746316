"""Format the plan as a table, as flags and as JSON."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tools.planner.advice import Advice
from tools.planner.planned_run import PlannedRun
from tools.planner.resources import DiskUse, describe, size


def suggestion(run: PlannedRun, advice: Advice) -> dict[str, Any]:
    """Return the suggested options by flag."""
    options: dict[str, Any] = {
        "batch_size": advice.best.batch_size,
        "update_freq": advice.plan.accum_steps,
        "num_workers": advice.measured.together.num_workers,
        "precision": str(run.precision),
    }
    if advice.num_threads:
        options["num_threads"] = advice.num_threads
    return options


def table(run: PlannedRun, advice: Advice) -> str:
    """Format measurements and plan for the terminal."""
    measured, plan, disk = advice.measured, advice.plan, advice.disk
    stopped = measured.steps.stopped
    flags = " ".join(f"--{name} {value}" for name, value in suggestion(run, advice).items())
    rows: dict[str, list[str]] = {
        "machine": [describe(run.world.device)],
        "loader": [_rate(f"workers {n}", rate) for n, rate in measured.loader.items()],
        "step": [
            f"{_rate(f'batch {p.batch_size}', p.images_per_s)}  {size(p.memory)} peak"
            for p in measured.steps.probes
        ]
        + ([f"no larger batch: {stopped}"] if stopped else []),
        "": [_rate(f"CPU threads {n}", rate) for n, rate in measured.threads.items()],
        "together": [
            f"{_rate(f'workers {measured.together.num_workers}', measured.together.images_per_s)}"
            f"  {measured.together.data_wait:.0%} of the time waiting for data"
        ],
        "bottleneck": [advice.bottleneck],
        "suggestion": [flags] + ([f"in {advice.processes} processes"] * (advice.processes > 1)),
        "run": [f"{len(run.train_set)} images, {plan.describe()}"],
        "time": [
            f"{_duration(advice.eta)} at {advice.images_per_s:.4g} img/s, without evaluations"
        ],
        "disk": _disk(disk),
    }
    named = [(name, i, line) for name, lines in rows.items() for i, line in enumerate(lines)]
    return "\n".join(f"{'' if i else name:<12}{line}" for name, i, line in named)


def _rate(what: str, images_per_s: float) -> str:
    return f"{what:<16}{images_per_s:>10.4g} img/s"


def _disk(disk: DiskUse) -> list[str]:
    lines = [
        f"{size(disk.total)} of {size(disk.free)} free: {disk.checkpoints} checkpoints of "
        f"{size(disk.checkpoint)}{' (and one being written)' if disk.deletes else ''}, "
        f"{size(disk.weights)} of weights, up to {size(disk.pictures)} of pictures"
    ]
    if disk.total > disk.free:
        lines.append("NOT ENOUGH free space: raise --save_ckpt_freq or choose another --output_dir")
    return lines


def as_json(run: PlannedRun, advice: Advice) -> dict[str, Any]:
    """Return measurements and plan for JSON; sizes in bytes, times in seconds."""
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
