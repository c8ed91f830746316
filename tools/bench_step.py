"""Time full pre-training steps: the product's, a plain one after SPEC.md, and ViTMAE.

    python tools/bench_step.py --model base --batch 48 --precision fp32
    python tools/bench_step.py --model tiny --table

Images are random. Contenders take turns in one process, which also measures the speed of their
matrix products alone (the matmul ceiling). The last line printed is JSON. Results:
docs/notes/MEASUREMENTS.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.commands import run_command
from tools.bench.cost_table import cost_table, table_line
from tools.bench.step_options import StepBenchConfig
from tools.bench.step_report import bench_step, report
from utils.config.parse import parse_config


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    cfg = parse_config(StepBenchConfig, argv)
    if cfg.bench.table:
        rows = []
        print(table_line(), flush=True)
        for row in cost_table(cfg):
            print(table_line(row), flush=True)
            rows.append(row)
        line = json.dumps(rows)
    else:
        result = bench_step(cfg)
        print(report(result))
        line = json.dumps(result)
    if cfg.bench.output_json:
        Path(cfg.bench.output_json).write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    run_command(main)
