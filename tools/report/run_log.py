"""Read the ``log.jsonl`` of runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae.specs.errors import UserError
from utils.logs.paths import RunPaths

Row = dict[str, Any]
Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""x and y values."""


def read_log(run: Path) -> list[Row]:
    """Read the rows of a run's log.

    Args:
        run: An output folder, or the log file itself.

    Raises:
        UserError: The log is missing, empty, or has an invalid line (path and number).
    """
    path = RunPaths(run).log if run.is_dir() else run
    if not path.is_file():
        raise UserError(f"{path} does not exist. Pass the output_dir of a run.")
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as err:
            # The last line of a killed or active run may be incomplete.
            if number == len(lines) and rows:
                break
            raise UserError(f"{path}, line {number}: not JSON: {err}") from err
        if isinstance(row, dict):
            rows.append(row)
    if not any(row.get("kind") in ("train", "eval") for row in rows):
        raise UserError(f"{path}: no train or eval rows yet")
    return rows


def evaluations(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Evaluations during training, the last of several at a step; and tests."""
    found = [row for row in rows if row.get("kind") == "eval" and "step" in row]
    is_test = [any(key.startswith("test/") for key in row) for row in found]
    during = {row["step"]: row for row, test in zip(found, is_test, strict=True) if not test}
    tests = [row for row, test in zip(found, is_test, strict=True) if test]
    return [during[step] for step in sorted(during)], tests


def curve(rows: Iterable[Row], kind: str, key: str, over: str = "step") -> Curve:
    """Finite values of ``key`` in the rows of one kind, sorted by ``over`` (step or epoch).

    The last of several rows at the same step counts.
    """
    points = {
        float(row[over]): float(row[key])
        for row in rows
        if row.get("kind") == kind
        and isinstance(row.get(key), (int, float))
        and math.isfinite(row[key])
    }
    xs = sorted(points)
    return np.array(xs, np.float64), np.array([points[x] for x in xs], np.float64)
