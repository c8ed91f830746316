"""Reading the ``log.jsonl`` of runs."""

from __future__ import annotations

import json
from pathlib import Path

from tools.report.curves import Row
from utils.logs.errors import UserError
from utils.logs.paths import RunPaths


def read_log(run: Path) -> list[Row]:
    """Rows of a run's log.

    Args:
        run: An output folder, or the log file itself.

    Raises:
        UserError: No log, an unreadable line (path and number), or no rows.
    """
    path = RunPaths(run).log if run.is_dir() else run
    if not path.is_file():
        raise UserError(f"{path} does not exist: no such log. Give the output_dir of a run.")
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as err:
            # A run that was killed, or is still writing, may leave half a line at the end.
            if number == len(lines) and rows:
                break
            raise UserError(f"{path}, line {number}: not JSON: {err}") from err
        if isinstance(row, dict):
            rows.append(row)
    if not any(row.get("kind") in ("train", "eval") for row in rows):
        raise UserError(f"{path}: holds no train or eval rows yet")
    return rows
