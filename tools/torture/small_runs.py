"""Start tiny training runs in subprocesses and inspect their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from multimae.images.pack import AnyPath

REPO = Path(__file__).resolve().parents[2]
GLOBAL_BATCH = 2
TIMEOUT_S = 120.0
SIZE = {"dim_tokens": 64, "depth": 2, "num_heads": 4}
"""Size of ``pretrain_multimae_nano``, which the child registers."""


@dataclass(frozen=True)
class Layout:
    """Number of processes, and loader workers per process."""

    ranks: int
    workers: int

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Parse ``2x0``: 2 processes without workers."""
        ranks, workers = map(int, text.split("x"))
        return cls(ranks, workers)

    def __str__(self) -> str:
        """Inverse of :meth:`parse`."""
        return f"{self.ranks}x{self.workers}"


@dataclass(frozen=True)
class RunFactory:
    """Starts runs that save a checkpoint every second step.

    Attributes:
        child: Script of the training process and its leading arguments.
        data_path: Folder of images.
        steps: Steps of a run.
        options: Further options of pre-training.
        launcher: Further options of torchrun.
    """

    child: Sequence[str]
    data_path: AnyPath
    steps: int
    options: Sequence[str] = ()
    launcher: Sequence[str] = ()

    def command(self, layout: Layout, output_dir: Path) -> list[str]:
        """Return the command line of a run."""
        python = [sys.executable]
        data = self.data_path.resolve() if isinstance(self.data_path, Path) else self.data_path
        if layout.ranks > 1:
            python += ["-m", "torch.distributed.run", f"--nproc_per_node={layout.ranks}"]
            python += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", *self.launcher]
        return [
            *python, *self.child,
            *("--config", str(REPO / "cfgs/pretrain/rooms/smoke.yaml")),
            *("--data_path", str(data), "--output_dir", str(output_dir)),
            *("--model", "pretrain_multimae_nano", "--input_size", "32", "--patch_size", "8"),
            *("--num_encoded_tokens", "12", "--decoder_dim", "32", "--decoder_depth", "1"),
            *("--decoder_num_heads", "4", "--batch_size", str(GLOBAL_BATCH // layout.ranks)),
            *("--epochs", "100", "--max_steps", str(self.steps)),
            *("--num_workers", str(layout.workers), "--save_ckpt_steps", "2"),
            *("--save_ckpt_freq", "1", "--keep_ckpts", "2", "--log_every", "3"),
            *("--device", "cpu", "--precision", "fp32", "--num_threads", "1"),
            *("--drop_path", "0.1", "--task_balancer", "uncertainty", "--deterministic"),
            "--eval_data_path=", *self.options,
        ]  # fmt: skip

    def start(self, layout: Layout, folder: Path) -> subprocess.Popen[bytes]:
        """Start a run in ``folder``; its output goes to ``output.txt`` there."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                self.command(layout, folder), cwd=REPO, stdout=output, stderr=output
            )


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for a run to succeed.

    Raises:
        RuntimeError: The run failed.
    """
    if process.wait(TIMEOUT_S):
        tail = (folder / "output.txt").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"a run ended with {process.returncode}:\n{tail}")


def descendants(pid: int) -> list[int]:
    """List all descendants of a process from /proc, parents first."""
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


def trainers(process: subprocess.Popen[bytes], layout: Layout) -> list[int]:
    """List the training processes: the run itself, or the launcher's children."""
    if layout.ranks == 1:
        return [process.pid]
    below = descendants(process.pid)
    inner = {pid for outer in below for pid in descendants(outer)}
    return [pid for pid in below if pid not in inner]


def alive(pid: int) -> bool:
    """Return whether a process runs; zombies do not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def send(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal; ignore processes that have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
