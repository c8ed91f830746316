"""Rows of ``log.jsonl`` when a run resumes or rolls back."""

from __future__ import annotations

import json
from pathlib import Path

from multimae.weights.atomic import atomic_file


def cut_log(path: Path, step: int, *, scored: bool) -> None:
    """Drop rows after ``step`` and a torn last line.

    Args:
        path: The log.
        step: Updates done.
        scored: Whether the evaluation at ``step`` is done.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _is_kept(line, step, scored=scored)]
    if kept != lines:
        with atomic_file(path) as file:
            file.writelines(kept)


def _is_kept(line: bytes, step: int, *, scored: bool) -> bool:
    """Whether a line is a row up to ``step``, or not one of this log's rows at all."""
    try:
        row = json.loads(line)
        at, kind = row["step"], row["kind"]
        if kind not in ("train", "eval"):
            return True
        return bool(at < step or (at == step and (scored or kind == "train")))
    except (ValueError, KeyError, TypeError, RecursionError):
        return line.endswith(b"\n")
