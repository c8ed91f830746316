"""Bad samples that a training left out: said once, counted, and too many end the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from utils.config.options import DataOptions
from utils.data.batches import BadSample
from utils.logs.errors import RunError, bullet_list

LAST = 3


class BadSamples:
    """The bad samples that a run has met, on any of its processes.

    Attributes:
        names: Of the different samples met; the caller's set, which checkpoints hold.
    """

    def __init__(self, options: DataOptions, say: Callable[[str], None], names: set[str]) -> None:
        """Go on from what was met before.

        Args:
            options: Has the limit.
            say: Takes lines for the log.
            names: Samples met before; changed in place.
        """
        self.limit, self.say, self.names = options.max_bad_samples, say, names
        self._last: list[str] = []

    @property
    def count(self) -> int:
        """Different samples met."""
        return len(self.names)

    def add(self, bad: Sequence[BadSample]) -> int:
        """Say those that have not been met before; returns their number."""
        before = self.count
        for name, problem in bad:
            if name in self.names:
                continue
            self.names.add(name)
            self._last = [*self._last, problem][-LAST:]
            self.say(f"left out bad sample {self.count}, {name}: {problem}")
        return self.count - before

    def check(self) -> None:
        """Stop the run if there are too many.

        Raises:
            RunError: There are; names the last ones met.
        """
        if self.count <= self.limit:
            return
        last = f"The last ones:\n{bullet_list(self._last)}\n" if self._last else ""
        raise RunError(
            f"{self.count} training samples are bad, more than max_bad_samples {self.limit}. {last}"
            "Mend the files, see the log for all of them, or raise --max_bad_samples."
        )
