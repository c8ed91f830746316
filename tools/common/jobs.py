"""Run independent jobs over processes; collect the errors of bad files and report them."""

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

from multimae.specs.errors import RunError, UserError, bullet_list

Job = TypeVar("Job")
Tally = Counter[tuple[str, str]]
"""Number of samples by (split, outcome)."""

MAX_PROBLEMS = 20
_ORDER = ("train", "val", "test")
WRITTEN, PRESENT, INCOMPLETE = "written", "already present", "incomplete, skipped"


@dataclass(frozen=True)
class _Attempt:
    """Wrap ``work`` to return the message of a UserError instead of raising it."""

    work: Callable[[Any], Tally]

    def __call__(self, job: Any) -> Tally | str:
        try:
            return self.work(job)
        except RunError:
            raise
        except UserError as err:
            return str(err)


def run_jobs(work: Callable[[Job], Tally], jobs: Sequence[Job], workers: int, unit: str) -> Tally:
    """Run ``work`` on every job, with a progress bar.

    Args:
        work: Called in any order; picklable if there are several workers.
        jobs: Arguments of ``work``.
        workers: Processes; 1 runs in the current one.
        unit: Unit of the progress bar.

    Returns:
        The summed counts.

    Raises:
        UserError: Some jobs failed. Raised after all others have run, or after
            ``MAX_PROBLEMS`` failures.
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
            f"{len(problems)} problems. Fix them and run the same command again; finished work is "
            f"kept:\n{bullet_list(problems)}"
        )
    return tally


def summary(name: str, tally: Tally, where: object) -> str:
    """Format the counts by split and outcome as one line."""
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
            "a worker process was killed, perhaps out of memory: use fewer --workers. Run the same "
            "command again to resume."
        ) from err
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
