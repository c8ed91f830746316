"""Killing runs and comparing what becomes of them (see ``tools/torture_resume.py``)."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.torture.fingerprint import fingerprint
from tools.torture.small_runs import (
    PATIENCE,
    Layout,
    RunFactory,
    descendants,
    finish,
    send,
    trainers,
)


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: after some steps more, or when the next save after them is being written.

    Attributes:
        steps: To wait for, from where the run goes on.
        delay: Seconds after that.
        in_save: Strike while a checkpoint is half-written.
        one: Kill one process of several only; the others must end by themselves.
    """

    steps: int
    delay: float
    in_save: bool
    one: bool


@dataclass(frozen=True)
class Chain:
    """A run and the moments at which it is killed."""

    layout: Layout
    kills: tuple[Kill, ...]


def chains_of(
    layouts: Sequence[Layout], kills: int, in_save: int, per_chain: int, seed: int
) -> list[Chain]:
    """Seeded moments, ``in_save`` of ``kills`` inside saves, shared out over layouts in turn."""
    rng = random.Random(seed)
    aimed = [i < in_save for i in range(kills)]
    rng.shuffle(aimed)
    moments = [
        Kill(rng.randint(0, 6), rng.uniform(0, 0.004 if aim else 0.3), aim, rng.random() < 0.5)
        for aim in aimed
    ]
    parts = [tuple(moments[i : i + per_chain]) for i in range(0, kills, per_chain)]
    return [Chain(layouts[i % len(layouts)], part) for i, part in enumerate(parts)]


def torture(
    chains: Sequence[Chain], runs: RunFactory, work: Path, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run every chain to its end and compare it with the run that is left alone.

    Returns:
        ``kills``, ``in_save`` (proved), ``chains``, ``equal`` and what differed.
    """
    alone: dict[Layout, dict[str, str]] = {}
    report: dict[str, Any] = {
        "kills": 0, "in_save": 0, "chains": len(chains), "equal": 0, "differ": {}
    }  # fmt: skip
    for number, chain in enumerate(chains):
        layout = chain.layout
        if layout not in alone:
            folder = work / f"alone-{layout}"
            finish(runs.start(layout, folder), folder)
            alone[layout] = fingerprint(folder)
        folder = work / f"chain-{number}"
        proved = 0
        for kill in chain.kills:
            process = runs.start(layout, folder)
            _strike(process, kill, folder, layout)
            proved += bool(list((folder / "checkpoints").glob(".*.tmp")))
        finish(runs.start(layout, folder), folder)
        print_ = fingerprint(folder)
        differ = [key for key, value in alone[layout].items() if print_[key] != value]
        report["kills"] += len(chain.kills)
        report["in_save"] += proved
        report["equal"] += not differ
        if differ:
            report["differ"][str(folder)] = differ
        say(
            f"chain {number + 1}/{len(chains)} ({layout}): {len(chain.kills)} kills, {proved} in a "
            f"save: {'differs in ' + ', '.join(differ) if differ else 'equal'}"
        )
    return report


def _strike(process: subprocess.Popen[bytes], kill: Kill, folder: Path, layout: Layout) -> None:
    """Wait for the moment and kill; returns when every process of the run is gone.

    Raises:
        RuntimeError: The run ended before.
    """
    samples = folder / "samples-0.jsonl"
    goal = _lines(samples) + 1 + kill.steps
    checkpoints = folder / "checkpoints"
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if _lines(samples) >= goal and (not kill.in_save or any(checkpoints.glob(".*.pth.*.tmp"))):
            break
        time.sleep(0.0005 if kill.in_save else 0.01)
    time.sleep(kill.delay)
    if process.poll() is not None:
        raise RuntimeError(f"{folder}: the run had ended before the kill; give it more --steps")
    family = [process.pid, *descendants(process.pid)]
    alone = kill.one and layout.ranks > 1 and not kill.in_save
    for pid in trainers(process, layout)[-1:] if alone else family:
        send(pid)
    process.wait(PATIENCE)
    for pid in family:  # workers notice by themselves; the next run need not wait for them
        send(pid)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0
