"""Errors that a user can fix: printed without a traceback, exit code 2 or 1."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import NoReturn, TextIO

MAX_SHOWN = 10
BROKEN_PIPE = 141  # 128 + SIGPIPE
COLOURS = {"red": 31, "green": 32, "yellow": 33}


class UserError(Exception):
    """Invalid configuration, data or files.

    The message says what is wrong, where (path, key, modality) and what to do.
    """

    exit_code = 2
    label = "error"
    everywhere = False
    """Whether every process of the run raises it; then rank 0 alone prints it."""


class RunError(UserError):
    """A failure during a run; the message says why, where and what to do."""

    exit_code = 1

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        """``everywhere``: every process raises it."""
        super().__init__(message)
        self.everywhere = everywhere


def bullet_list(items: Sequence[str], limit: int = MAX_SHOWN) -> str:
    """Format ``items`` as an indented list of at most ``limit``, with a count of the rest."""
    lines = [f"  - {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} more")
    return "\n".join(lines)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run the ``main`` of a command and exit with its code, see :func:`exit_code_of`."""
    sys.exit(exit_code_of(main))


def exit_code_of(main: Callable[[], int | None]) -> int:
    """Run the ``main`` of a command.

    A :class:`UserError` is printed without a traceback. Codes of a shell: 130 after Ctrl+C, 143
    after SIGTERM, 141 if the reader of the output is gone (``| head``).
    """
    from multimae.specs.termination import exit_on_sigterm

    escape_names()
    try:
        with exit_on_user_error(), exit_on_sigterm():
            code = main() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = BROKEN_PIPE
        drop_broken_pipe(failed=True)
    except SystemExit:
        if drop_broken_pipe():
            raise SystemExit(BROKEN_PIPE) from None
        raise
    return BROKEN_PIPE if drop_broken_pipe() else code


def drop_broken_pipe(failed: bool = False) -> bool:
    """Whether the reader of stdout is gone; then what Python would still write is dropped.

    Args:
        failed: Whether writing to some pipe has failed, and nothing may be left to write.
    """
    broken = False
    try:
        sys.stdout.flush()
        if failed:
            poll = select.poll()
            poll.register(sys.stdout.fileno(), 0)
            broken = any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        broken = True
    except (OSError, ValueError):  # not a file
        return False
    if broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return broken


def escape_names() -> None:
    r"""Let stdout print file names that are not UTF-8, as ``\udce9``; stderr does already."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print a :class:`UserError` on stderr and exit with its code."""
    try:
        yield
    except UserError as err:
        print_error(err)
        raise SystemExit(err.exit_code) from None


def print_error(err: UserError) -> None:
    """Print the message on stderr, without the traceback that DataLoader workers prepend."""
    message = str(err).split(f"{type(err).__name__}: ")[-1].strip()
    label = coloured(f"{err.label}:", "red", sys.stderr)
    print(f"{label} {message}", file=sys.stderr, flush=True)


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """``text`` in one of :data:`COLOURS`, on terminals; not with ``NO_COLOR`` or ``TERM=dumb``."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{COLOURS[colour]}m{text}\033[0m"
