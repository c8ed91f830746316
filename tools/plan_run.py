"""Measure this machine for a minute and suggest how to run a configuration on it.

    python tools/plan_run.py --config cfgs/pretrain/rooms/tiny.yaml --seconds 60
    python tools/plan_run.py --config cfgs/finetune/cls/ft_in1k_100e_multimae-b.yaml --data_path ...

Accepts every option of the training script. Measures the loader on the real data, steps of the real
model and optimizer, and both together. Prints the bottleneck, the batch size, accumulation and
workers that keep the global batch, the learning rate, and the run's time and disk space. The last
line is JSON. Writes no files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.commands import run_command
from multimae.specs.errors import UserError
from tools.planner.advice import advise
from tools.planner.plan_options import read_plan_config
from tools.planner.plan_report import as_json, table
from tools.planner.planned_run import build_run
from utils.distributed.world import init_world


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, measure, print."""
    cfg = read_plan_config(argv)
    world = init_world(cfg.runtime)
    if world.size > 1:
        raise UserError("plan_run.py runs in one process: start it with python, not torchrun")
    run = build_run(cfg, world)
    print(f"{cfg.model.model} on {world.device}: measuring for about {cfg.plan.seconds:.0f} s")
    advice = advise(run)
    print(table(run, advice))
    print(json.dumps(as_json(run, advice)))


if __name__ == "__main__":
    run_command(main)
