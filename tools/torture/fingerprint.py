"""Hash the results of a finished run, to compare runs bit by bit."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from multimae.weights.files import read_checkpoint
from utils.logs.paths import RunPaths

_TIMINGS = ("images_per_s", "data_wait")  # log fields that depend on the clock


def fingerprint(folder: Path) -> dict[str, str]:
    """Return hashes of the last checkpoint, final weights, log and sample order."""
    paths = RunPaths(folder)
    saved = (p for p in paths.checkpoints.glob("checkpoint-*.pth") if p != paths.best)
    state = max(map(read_checkpoint, saved), key=lambda contents: int(contents["step"]))
    hashes = {key: digest(value) for key, value in state.items() if key != "config"}
    hashes["weights"] = digest(paths.model.read_bytes())
    rows = map(json.loads, paths.log.read_text().splitlines())
    hashes["log"] = digest([{k: v for k, v in r.items() if k not in _TIMINGS} for r in rows])
    hashes["samples"] = digest(sample_order(folder))
    return hashes


def sample_order(folder: Path) -> list[tuple[int, list[str]]]:
    """Read the sample names of every step over all processes.

    Raises:
        AssertionError: A repeated step used other samples.
    """
    by_step: dict[tuple[int, str], list[str]] = {}
    for path in sorted(folder.glob("samples-*.jsonl")):
        for line in path.read_text().splitlines():
            if not line.endswith("]"):
                continue  # truncated by a kill
            step, *names = json.loads(line)
            known = by_step.setdefault((step, path.name), names)
            assert known == names, f"{path}: step {step} used {known} and {names}"
    steps = sorted({step for step, _ in by_step})
    return [(s, sum((v for k, v in sorted(by_step.items()) if k[0] == s), [])) for s in steps]


def digest(value: Any) -> str:
    """Hash tensors, bytes and plain values, nested in dicts and lists."""
    hashed = blake2b(digest_size=16)

    def feed(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            hashed.update(f"{item.dtype}{tuple(item.shape)}".encode())
            hashed.update(item.contiguous().view(torch.uint8).numpy().tobytes() if item.dim()
                          else repr(item.item()).encode())  # fmt: skip
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                hashed.update(f"{key}:".encode())
                feed(item[key])
        elif isinstance(item, list | tuple):
            for each in item:
                feed(each)
        else:
            hashed.update(item if isinstance(item, bytes) else repr(item).encode())
        hashed.update(b";")

    feed(value)
    return hashed.hexdigest()
