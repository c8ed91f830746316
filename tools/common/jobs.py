"""Many independent pieces of work, over processes: bad files are collected, then reported."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from utils.logs.errors import RunError, UserError, bullet_list

Job = TypeVar("Job")
Tally = Counter[tuple[str, str]]
"""How many samples of a split (first) had an outcome (second: "written", "present", ...)."""

MAX_PROBLEMS = 20
_ORDER = ("train", "val", "test")
WRITTEN, PRESENT, INCOMPLETE = "written", "already there", "incomplete, skipped"


@dataclass(frozen=True)
class _Attempt:
    """Work whose refusal is a value: the message of its UserError."""

    work: Callable[[Any], Tally]

    def __call__(self, job: Any) -> Tally | str:
        try:
            return self.work(job)
        except RunError:
            raise
        except UserError as err:
            return str(err)


def run_jobs(work: Callable[[Job], Tally], jobs: Sequence[Job], workers: int, unit: str) -> Tally:
    """Do ``work`` for every job, with a progress bar.

    Args:
        work: Done in any order; picklable if there are several workers.
        jobs: Its arguments.
        workers: Processes; 1 works in this one.
        unit: What a job is called in the bar.

    Returns:
        The sum of what the jobs counted.

    Raises:
        UserError: What was wrong with some of the jobs, after all others were done; after
            ``MAX_PROBLEMS`` the rest is not tried.
        RunError: A process was killed.
        OSError: A file could not be written.
    """
    tally: Tally = Counter()
    problems: list[str] = []
    results = _results(_Attempt(work), jobs, min(workers, len(jobs)))
    with tqdm(total=len(jobs), unit=unit, disable=None, smoothing=0.1) as bar:
        for result in results:
            bar.update()
            if isinstance(result, str):
                problems.append(result)
            else:
                tally.update(result)
            if len(problems) == MAX_PROBLEMS:
                results.close()
                break
    if problems:
        raise UserError(
            f"{len(problems)} problems; mend them and run the same command again, which keeps "
            f"what is done:\n{bullet_list(problems)}"
        )
    return tally


def summary(name: str, tally: Tally, where: object) -> str:
    """One line: samples by split and outcome."""
    parts = []
    for split in sorted({split for split, _ in tally}, key=_ORDER.index):
        counts = [f"{n} {what}" for (s, what), n in sorted(tally.items()) if s == split]
        parts.append(f"{split} {', '.join(counts)}")
    return f"{name}: {'; '.join(parts)} -> {where}"


def _results(
    work: _Attempt, jobs: Sequence[Any], workers: int
) -> Generator[Tally | str, None, None]:
    if workers <= 1:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("spawn")
    chunk = max(1, min(8, len(jobs) // (4 * workers)))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts)
    try:
        yield from pool.map(work, jobs, chunksize=chunk)
    except BrokenProcessPool as err:
        raise RunError(
            "a worker process was killed, perhaps for lack of memory: use fewer --workers. The "
            "same command goes on from here."
        ) from err
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
