"""What a finished run has left, as hashes: two runs that did the same have the same."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from multimae.weights.files import read_checkpoint
from utils.checkpoint.files import BEST

_TIMES = ("images_per_s", "data_wait")  # of log rows: they depend on the clock


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of everything a finished run has left."""
    saved = (p for p in (folder / "checkpoints").glob("checkpoint-*.pth") if p.name != BEST)
    state = max(map(read_checkpoint, saved), key=lambda contents: int(contents["step"]))
    prints = {key: digest(value) for key, value in state.items() if key != "config"}
    prints["weights"] = digest((folder / "model.safetensors").read_bytes())
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    prints["log"] = digest([{k: v for k, v in r.items() if k not in _TIMES} for r in rows])
    prints["samples"] = digest(sample_order(folder))
    return prints


def sample_order(folder: Path) -> list[tuple[int, list[str]]]:
    """Names of the samples of every step, over all processes.

    Raises:
        AssertionError: A step that was done again had other samples.
    """
    by_step: dict[tuple[int, str], list[str]] = {}
    for path in sorted(folder.glob("samples-*.jsonl")):
        for line in path.read_text().splitlines():
            if not line.endswith("]"):
                continue  # torn by a kill
            step, *names = json.loads(line)
            known = by_step.setdefault((step, path.name), names)
            assert known == names, f"{path}: step {step} was done with {known} and with {names}"
    steps = sorted({step for step, _ in by_step})
    return [(s, sum((v for k, v in sorted(by_step.items()) if k[0] == s), [])) for s in steps]


def digest(value: Any) -> str:
    """Hash of tensors, bytes and plain values in dicts and lists."""
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
