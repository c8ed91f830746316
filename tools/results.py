"""Fine-tune from pre-trained weights and from scratch over several seeds, then tabulate.

    python tools/results.py run cfgs/results/rooms.yaml --jobs 2
    python tools/results.py run cfgs/results/rooms.yaml --size small --set input_size=224
    python tools/results.py report cfgs/results/rooms.yaml

``run`` trains what is missing: one folder ``output_dir/EXPERIMENT/START/SEED`` per run, so that a
stopped command goes on where it stopped. ``--set`` changes options of every run. ``report`` writes
the table, the command, the hardware and the commit between the ``<!-- results -->`` marks of the
plan's ``report`` file, and one picture with every metric against epochs. The score of a run is that
of its last epoch: nothing is selected on the test rooms.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.compare.comparison import ComparisonRun, read_comparison
from tools.compare.comparison_report import write_report
from utils.logs.errors import UserError, exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("run", help="train what is missing")
    train.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    train.add_argument(
        "--threads",
        type=int,
        default=None,
        help="CPU threads of each run; default: the cores shared out",
    )
    train.add_argument("--only", nargs="+", default=[], help="names of experiments")
    train.add_argument("--seeds", type=int, nargs="+", default=[], help="instead of the plan's")
    report = commands.add_parser("report", help="write table and picture from the logs")
    for each in (train, report):
        each.add_argument("plan", type=Path, help="a YAML of cfgs/results")
        each.add_argument("--size", default=None, help="tiny, small ...; default: the plan's")
        each.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", dest="changes")
    args = parser.parse_args(argv)
    plan = read_comparison(args.plan, args.size, args.changes)
    if args.command == "report":
        for path in write_report(plan, f"python tools/results.py run {args.plan}"):
            print(path)
        return
    jobs = max(1, args.jobs)
    threads = args.threads or max(1, (os.cpu_count() or 1) // jobs)
    run_all(plan.runs(args.only, args.seeds), jobs, ["--num_threads", str(threads)])


def run_all(runs: Sequence[ComparisonRun], jobs: int, more: Sequence[str]) -> None:
    """Train all runs that are not done, ``jobs`` at a time; the first failure ends it.

    Raises:
        UserError: A run failed; names its log.
    """
    todo = [run for run in runs if not run.done()]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them done", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        waiting: set[Future[ComparisonRun]] = {pool.submit(_train, run, more) for run in todo}
        try:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    run = future.result()
                    scores = ", ".join(f"{k} {v:.4g}" for k, v in run.scores().items())
                    print(f"{run.name}: {scores} ({len(waiting)} to go)", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _train(run: ComparisonRun, more: Sequence[str]) -> ComparisonRun:
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / "console.txt"
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, *run.arguments(), *more]
        code = subprocess.run(
            command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-12:])
        raise UserError(f"{run.name} failed with status {code}:\n{tail}\nAll of it: {log}")
    return run


if __name__ == "__main__":
    with exit_on_user_error():
        main()
