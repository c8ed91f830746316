"""Fine-tune from pre-trained weights and from scratch over several seeds, then tabulate.

    python tools/results.py run cfgs/results/rooms.yaml --jobs 2
    python tools/results.py run cfgs/results/rooms.yaml --size small --set input_size=224
    python tools/results.py report cfgs/results/rooms.yaml

``run`` trains every missing run in ``output_dir/EXPERIMENT/START/BUDGET/SEED`` and can be
restarted: first models that the plan pre-trains, then runs that tune an option, then the others.
``--set`` changes options of every run. ``report`` writes the table, command, hardware and commit
between the ``<!-- results: PLAN -->`` markers of the plan's ``report`` file, and a plot of the
scores. They are those of the last epoch: no checkpoint is selected on the test set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError
from tools.compare.comparison import ComparisonRun, read_comparison
from tools.compare.comparison_report import write_report

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = CommandParser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("run", help="train the missing runs")
    train.add_argument("--jobs", type=int, default=1, help="concurrent runs")
    train.add_argument(
        "--threads",
        type=int,
        default=None,
        help="CPU threads per run; default: cores / jobs",
    )
    train.add_argument("--only", nargs="+", default=[], help="experiments to run")
    train.add_argument("--budgets", nargs="+", default=[], help="budgets to run")
    train.add_argument("--seeds", type=int, nargs="+", default=[], help="override the plan's seeds")
    report = commands.add_parser("report", help="write table and plot from the logs")
    for each in (train, report):
        each.add_argument("plan", type=Path, help="YAML file of cfgs/results")
        each.add_argument("--size", default=None, help="tiny, small ...; default: the plan's")
        each.add_argument(
            "--set",
            nargs="+",
            default=[],
            metavar="OPTION=VALUE",
            dest="changes",
            help="options of every run",
        )
    args = parser.parse_args(argv)
    plan = read_comparison(args.plan, args.size, args.changes)
    if args.command == "report":
        for path in write_report(plan, f"python tools/results.py run {args.plan}"):
            print(path)
        return
    jobs = max(1, args.jobs)
    threads = args.threads or max(1, (os.cpu_count() or 1) // jobs)
    flags = ["--num_threads", str(threads)]
    for runs in (plan.pretraining_runs(args.seeds), plan.tuning_runs(args.only)):
        if runs:
            run_all(runs, jobs, flags)
    runs = plan.runs(args.only, args.seeds, args.budgets)
    run_all([replace(run, options=plan.tuned_options(run)) for run in runs], jobs, flags)


def run_all(runs: Sequence[ComparisonRun], jobs: int, extra_args: Sequence[str]) -> None:
    """Train all unfinished runs, ``jobs`` at a time; stop at the first failure.

    Raises:
        UserError: A run failed (with the end and path of its log).
    """
    todo = [run for run in runs if not run.done()]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} finished", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        waiting: set[Future[ComparisonRun]] = {pool.submit(_train, run, extra_args) for run in todo}
        try:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    run = future.result()
                    scores = ", ".join(f"{k} {v:.4g}" for k, v in run.scores().items())
                    print(f"{run.name}: {scores} ({len(waiting)} remaining)", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _train(run: ComparisonRun, extra_args: Sequence[str]) -> ComparisonRun:
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / "console.txt"
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, *run.arguments(), *extra_args]
        code = subprocess.run(
            command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-12:])
        raise UserError(f"{run.name} failed with status {code}:\n{tail}\nFull log: {log}")
    return run


if __name__ == "__main__":
    run_command(main)
