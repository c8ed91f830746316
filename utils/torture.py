"""Killing runs and comparing what becomes of them (see ``tools/torture_resume.py``)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.fingerprint import fingerprint

REPO = Path(__file__).resolve().parents[1]
GLOBAL_BATCH = 2
PATIENCE = 120.0


@dataclass(frozen=True)
class Layout:
    """Processes, and loader workers of each."""

    ranks: int
    workers: int

    @classmethod
    def parse(cls, text: str) -> Layout:
        """``2x0`` as 2 processes without workers."""
        ranks, workers = map(int, text.split("x"))
        return cls(ranks, workers)

    def __str__(self) -> str:
        """Inverse of :meth:`parse`."""
        return f"{self.ranks}x{self.workers}"


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
    chains: Sequence[Chain],
    data_path: Path,
    work: Path,
    steps: int,
    say: Callable[[str], None] = print,
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
            _finish(_start(layout, data_path, folder, steps), folder)
            alone[layout] = fingerprint(folder)
        folder = work / f"chain-{number}"
        proved = 0
        for kill in chain.kills:
            process = _start(layout, data_path, folder, steps)
            _strike(process, kill, folder, layout.ranks)
            proved += bool(list((folder / "checkpoints").glob(".*.tmp")))
        _finish(_start(layout, data_path, folder, steps), folder)
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


def command(layout: Layout, data_path: Path, output_dir: Path, steps: int) -> list[str]:
    """Command line of a run with a checkpoint every second step."""
    python = [sys.executable]
    if layout.ranks > 1:
        python += ["-m", "torch.distributed.run", f"--nproc_per_node={layout.ranks}"]
        python += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    return [
        *python, str(REPO / "tools/torture_resume.py"), "child",
        *("--config", str(REPO / "cfgs/pretrain/rooms/smoke.yaml")),
        *("--data_path", str(data_path), "--output_dir", str(output_dir)),
        *("--model", "pretrain_multimae_nano", "--input_size", "32", "--patch_size", "8"),
        *("--num_encoded_tokens", "12", "--decoder_dim", "32", "--decoder_depth", "1"),
        *("--decoder_num_heads", "4", "--batch_size", str(GLOBAL_BATCH // layout.ranks)),
        *("--epochs", "100", "--max_steps", str(steps), "--num_workers", str(layout.workers)),
        *("--save_ckpt_steps", "2", "--save_ckpt_freq", "1", "--keep_ckpts", "2"),
        *("--log_every", "3", "--device", "cpu", "--precision", "fp32", "--num_threads", "1"),
        *("--drop_path", "0.1", "--task_balancer", "uncertainty", "--deterministic"),
        "--eval_data_path=",
    ]  # fmt: skip


def _start(layout: Layout, data_path: Path, folder: Path, steps: int) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            command(layout, data_path.resolve(), folder, steps),
            cwd=REPO, stdout=output, stderr=output,
        )  # fmt: skip


def _finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait(PATIENCE):
        tail = (folder / "output.txt").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"a run ended with {process.returncode}:\n{tail}")


def _strike(process: subprocess.Popen[bytes], kill: Kill, folder: Path, ranks: int) -> None:
    """Wait for the moment and kill; returns when every process of the run is gone."""
    samples = folder / "samples-0.jsonl"
    goal = _lines(samples) + 1 + kill.steps
    checkpoints = folder / "checkpoints"
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if _lines(samples) >= goal and (not kill.in_save or any(checkpoints.glob(".*.pth.*.tmp"))):
            break
        time.sleep(0.0005)
    time.sleep(kill.delay)
    family = [process.pid, *descendants(process.pid)]
    trainers = [pid for pid in family if _is_trainer(pid)]
    victims = trainers[-1:] if kill.one and ranks > 1 and not kill.in_save else family
    for pid in victims:
        _kill(pid)
    process.wait(PATIENCE)
    for pid in family:  # workers notice by themselves; the next run need not wait for them
        _kill(pid)


def descendants(pid: int) -> list[int]:
    """All processes below one, from /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))

    def below(parent: int) -> Iterator[int]:
        for child in children.get(parent, ()):
            yield child
            yield from below(child)

    return list(below(pid))


def _is_trainer(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"child" in words and b"torch.distributed.run" not in words


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0
