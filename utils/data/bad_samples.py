"""Bad samples that a training left out: said once, counted, and too many end the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.data.loaders import BadSample
from utils.errors import RunError, bullet_list
from utils.options import DataOptions

LAST = 3


class BadSamples:
    """The bad samples that this process has met.

    Attributes:
        count: Different samples met, those of the checkpoint that a run goes on from included.
    """

    def __init__(self, options: DataOptions, say: Callable[[str], None], count: int = 0) -> None:
        """Nothing met yet.

        Args:
            options: Has the limit.
            say: Takes lines for the log.
            count: Samples that were counted elsewhere and have no names here.
        """
        self.limit, self.say, self.count = options.max_bad_samples, say, count
        self._names: dict[str, None] = {}
        self._last: list[str] = []

    def add(self, bad: Sequence[BadSample]) -> int:
        """Say those that have not been met before; returns their number."""
        before = self.count
        for name, problem in bad:
            if name in self._names:
                continue
            self._names[name] = None
            self.count += 1
            self._last = [*self._last, problem][-LAST:]
            self.say(f"left out bad sample {self.count}, {name}: {problem}")
        return self.count - before

    def check(self, total: int) -> None:
        """Stop the run if there are too many.

        Args:
            total: Bad samples met by all processes.

        Raises:
            RunError: ``total`` is above the limit; names the last ones that this process met.
        """
        if total <= self.limit:
            return
        last = f"The last ones:\n{bullet_list(self._last)}\n" if self._last else ""
        raise RunError(
            f"{total} training samples are bad, more than max_bad_samples {self.limit}. {last}"
            "Mend the files, see the log for all of them, or raise --max_bad_samples."
        )

    def state_dict(self) -> dict[str, Any]:
        """What was met, for a checkpoint: plain strings and a number."""
        return {"count": self.count, "names": list(self._names)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.count = int(state["count"])
        self._names = dict.fromkeys(map(str, state["names"]))
