"""Errors that a user can mend: printed as one screen without traceback, exit code 2 or 1."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

MAX_SHOWN = 10


class UserError(Exception):
    """Something in the user's configuration, data or files is wrong.

    The message says what was wrong, where (path, key, modality) and what to do.
    """

    exit_code = 2
    label = "error"
    everywhere = False
    """Whether every process of the run raises it, so that one of them need say it."""


class RunError(UserError):
    """A run that started cannot go on; the message says why, where and what to do."""

    exit_code = 1

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        """See the class; ``everywhere`` if the processes have agreed on it."""
        super().__init__(message)
        self.everywhere = everywhere


def bullet_list(items: Sequence[str], limit: int = MAX_SHOWN) -> str:
    """``items`` as an indented list, cut after ``limit`` with a count of the rest."""
    lines = [f"  - {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} more")
    return "\n".join(lines)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a :class:`UserError` into a message on stderr and its exit code.

    A data-loader worker re-raises with its own traceback inside the message; only the part after
    the error's name is the user's.
    """
    try:
        yield
    except UserError as err:
        print_error(err)
        raise SystemExit(err.exit_code) from None


def print_error(err: UserError) -> None:
    """Print the message on stderr."""
    message = str(err).split(f"{type(err).__name__}: ")[-1].strip()
    print(f"{err.label}: {message}", file=sys.stderr, flush=True)
