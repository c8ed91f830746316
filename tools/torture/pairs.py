"""Start two runs in one output folder: one is refused, the other is not disturbed."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from multimae.specs.errors import UserError
from tools.torture.fingerprint import fingerprint
from tools.torture.small_runs import REPO, TIMEOUT_S, Layout, RunFactory, finish, send

DELAYS_S = {"together": 0.0, "later": 6.0}
"""Seconds between the starts of the two runs, by kind."""
PAIR_STEPS = 120
"""Steps of a run, which thus ends well after the second one is refused."""
LAYOUT = Layout(1, 0)


@dataclass(frozen=True)
class PairTrial:
    """How two runs in one folder ended.

    Attributes:
        codes: Exit codes, in order of the starts.
        refusal: Output of the refused run; empty without one.
        equal: Whether the other run equals one that had the folder alone, bit by bit.
    """

    codes: tuple[int, int]
    refusal: str
    equal: bool

    def passed(self) -> bool:
        """Return whether one run was refused with one line and the other is equal."""
        one_line = self.refusal.count("\n") == 1 and " is in use by another run" in self.refusal
        return sorted(self.codes) == [0, UserError.exit_code] and one_line and self.equal


def run_alone(runs: RunFactory, folder: Path) -> dict[str, str]:
    """Train in a folder without a second run and return the fingerprint."""
    finish(runs.start(LAYOUT, folder), folder)
    return fingerprint(folder)


def try_pair(runs: RunFactory, folder: Path, delay_s: float, expected: dict[str, str]) -> PairTrial:
    """Start two runs in a folder and wait for both.

    Args:
        runs: Factory of runs that take longer than the delay.
        folder: Output folder.
        delay_s: Seconds between the starts.
        expected: Fingerprint of a run alone.
    """
    folder.mkdir(parents=True)
    outputs = [folder / f"output-{i}.txt" for i in range(2)]
    started: list[subprocess.Popen[bytes]] = []
    for path in outputs:
        if started:
            time.sleep(delay_s)
        with path.open("wb") as output:
            command = runs.command(LAYOUT, folder)
            started.append(subprocess.Popen(command, cwd=REPO, stdout=output, stderr=output))
    try:
        first, second = (process.wait(TIMEOUT_S) for process in started)
    finally:
        for process in started:
            send(process.pid)
    refused = [i for i, code in enumerate((first, second)) if code]
    refusal = outputs[refused[0]].read_text(errors="replace") if refused else ""
    equal = 0 in (first, second) and fingerprint(folder) == expected
    return PairTrial((first, second), refusal, equal)
