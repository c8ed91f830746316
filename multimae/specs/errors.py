"""Errors that a user can fix: printed without a traceback, exit code 2 or 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

MAX_SHOWN = 10
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
