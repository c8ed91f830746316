"""Make runs fail and check how they end.

    python tools/torture_failures.py --trials 10

A loss that is not finite on one rank, an exception while rank 0 saves, a full disk, an exception
on one rank, a killed rank, a killed loader worker, SIGTERM to one rank or to the launcher of two;
SIGTERM, SIGINT and SIGUSR1 to a run of one process: every process must exit within 30 s
with a non-zero code (143 after a signal to a single process), and the output must name the cause
once.

Two runs in one output folder, started ``together`` and one 6 s ``later``: one must be refused with
exit code 2 and one line, the other equal a run alone bit by bit. The last line is JSON. Needs
Linux (/proc).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import run_pretraining_multimae
from multimae.images.pack import to_path
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.registry import SIZES
from tools.torture.failures import FAILURES, KIND, inject, try_failure
from tools.torture.pairs import DELAYS_S, PAIR_STEPS, run_alone, try_pair
from tools.torture.small_runs import SIZE, RunFactory
from utils.distributed.script import run_script

CHILD = "child"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials; 0 if all passed, else 1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == [CHILD]:
        return train_child(arguments[1:])
    parser = CommandParser(__doc__)
    parser.add_argument("--trials", type=int, default=10, help="trials of each kind")
    kinds = [*FAILURES, *DELAYS_S]
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds, help="failures")
    parser.add_argument("--data_path", type=to_path, default=Path("examples/rooms"), help="samples")
    parser.add_argument("--work", type=Path, help="folder of the runs (a temporary one)")
    options = parser.parse_args(arguments)
    runs = RunFactory([str(Path(__file__).resolve()), CHILD], options.data_path, steps=400)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for kind in [kind for kind in options.kinds if kind in DELAYS_S]:
            shorter = replace(runs, steps=PAIR_STEPS)
            report[kind] = try_pairs(kind, options.trials, shorter, work)
            print(kind, json.dumps(report[kind]), flush=True)
        for kind in [kind for kind in options.kinds if kind in FAILURES]:
            seeds = range(options.trials)
            trials = [try_failure(kind, runs, work / f"{kind}-{i}", i) for i in seeds]
            report[kind] = {
                "passed": sum(trial.passed(FAILURES[kind]) for trial in trials),
                "trials": len(trials),
                "slowest_s": round(max(trial.seconds for trial in trials), 1),
                "codes": sorted({trial.code for trial in trials}),
                "named": sorted({trial.named for trial in trials}),
                "hangs": sum(trial.hanging > 0 for trial in trials),
            }
            print(kind, json.dumps(report[kind]), flush=True)
    print(json.dumps(report))
    return 0 if all(each["passed"] == each["trials"] for each in report.values()) else 1


def try_pairs(kind: str, trials: int, runs: RunFactory, work: Path) -> dict[str, Any]:
    """Start pairs of runs and summarize how they ended."""
    alone = run_alone(runs, work / f"{kind}-alone")
    ended = [try_pair(runs, work / f"{kind}-{i}", DELAYS_S[kind], alone) for i in range(trials)]
    return {
        "passed": sum(trial.passed() for trial in ended),
        "trials": trials,
        "codes": [trial.codes for trial in ended],
        "equal": sum(trial.equal for trial in ended),
        "refusal": ended[0].refusal.strip(),
    }


def train_child(argv: Sequence[str]) -> int:
    """Train with the injected failure."""
    SIZES["nano"] = SIZE
    output_dir = Path(argv[list(argv).index("--output_dir") + 1])
    if KIND in os.environ:
        inject(output_dir)
    run_script(lambda: run_pretraining_multimae.main(argv))
    return 0


if __name__ == "__main__":
    run_command(main)
