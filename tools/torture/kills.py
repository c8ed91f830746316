"""Kill and resume runs, then compare them with uninterrupted ones."""

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
    TIMEOUT_S,
    Layout,
    RunFactory,
    descendants,
    finish,
    send,
    trainers,
)
from utils.logs.paths import RunPaths


@dataclass(frozen=True)
class Kill:
    """One SIGKILL, after some steps or inside the next save after them.

    Attributes:
        steps: Steps to wait for after resuming.
        delay: Further seconds to wait.
        in_save: Kill while a checkpoint is half-written.
        one: Kill one of several processes; the others must exit by themselves.
    """

    steps: int
    delay: float
    in_save: bool
    one: bool


@dataclass(frozen=True)
class Chain:
    """A run and its kills."""

    layout: Layout
    kills: tuple[Kill, ...]


def chains_of(
    layouts: Sequence[Layout], kills: int, in_save: int, per_chain: int, seed: int
) -> list[Chain]:
    """Draw ``kills`` seeded kills, ``in_save`` of them inside saves, round-robin over layouts."""
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
    chains: Sequence[Chain], runs: RunFactory, work: Path, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run every chain to its end and compare it with an uninterrupted run.

    Returns:
        Counts ``kills``, ``in_save`` (verified), ``chains``, ``equal``, and ``differ``.
    """
    references: dict[Layout, dict[str, str]] = {}
    report: dict[str, Any] = {
        "kills": 0, "in_save": 0, "chains": len(chains), "equal": 0, "differ": {}
    }  # fmt: skip
    for number, chain in enumerate(chains):
        layout = chain.layout
        if layout not in references:
            folder = work / f"reference-{layout}"
            finish(runs.start(layout, folder), folder)
            references[layout] = fingerprint(folder)
        folder = work / f"chain-{number}"
        in_save = 0
        for kill in chain.kills:
            process = runs.start(layout, folder)
            _kill_run(process, kill, folder, layout)
            in_save += bool(list(RunPaths(folder).checkpoints.glob(".*.tmp")))
        finish(runs.start(layout, folder), folder)
        result = fingerprint(folder)
        differ = [key for key, value in references[layout].items() if result[key] != value]
        report["kills"] += len(chain.kills)
        report["in_save"] += in_save
        report["equal"] += not differ
        if differ:
            report["differ"][str(folder)] = differ
        log(
            f"chain {number + 1}/{len(chains)} ({layout}): {len(chain.kills)} kills, {in_save} "
            f"in a save: {'differs in ' + ', '.join(differ) if differ else 'equal'}"
        )
    return report


def _kill_run(process: subprocess.Popen[bytes], kill: Kill, folder: Path, layout: Layout) -> None:
    """Wait for the moment, kill the run, and wait for its processes to end.

    Raises:
        RuntimeError: The run ended before the kill.
    """
    samples = folder / "samples-0.jsonl"
    goal = _lines(samples) + 1 + kill.steps
    checkpoints = RunPaths(folder).checkpoints
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        if _lines(samples) >= goal and (not kill.in_save or any(checkpoints.glob(".*.pth.*.tmp"))):
            break
        time.sleep(0.0005 if kill.in_save else 0.01)
    time.sleep(kill.delay)
    if process.poll() is not None:
        raise RuntimeError(f"{folder}: the run ended before the kill; raise --steps")
    family = [process.pid, *descendants(process.pid)]
    only_one = kill.one and layout.ranks > 1 and not kill.in_save
    for pid in trainers(process, layout)[-1:] if only_one else family:
        send(pid)
    process.wait(TIMEOUT_S)
    for pid in family:  # do not wait for orphaned workers
        send(pid)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0
