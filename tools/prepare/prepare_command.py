"""Flags, exit codes and messages shared by the preparation commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from multimae.specs.arguments import CommandParser
from multimae.specs.errors import UserError, print_error
from tools.common.staging import clean_staging
from tools.common.target_folder import LINKS, Target


def make_parser(doc: str | None, source: str) -> argparse.ArgumentParser:
    """Build a parser with the common flags.

    Args:
        doc: Docstring of the command.
        source: Help of ``--source``.
    """
    parser = CommandParser(doc)
    parser.add_argument("--source", type=Path, required=True, help=source)
    parser.add_argument("--out", type=Path, required=True, help="data set folder to write")
    parser.add_argument("--workers", type=_positive, default=1, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="rewrite existing files")
    return parser


def add_link(parser: argparse.ArgumentParser) -> None:
    """Add ``--link``, for files that are used unchanged."""
    parser.add_argument(
        "--link",
        choices=LINKS,
        default=LINKS[0],
        help="how to add unchanged files: hard links (default), symbolic links or copies",
    )


def finish(target: Target, prepare: Callable[[], str]) -> int:
    """Run ``prepare`` and print its summary or error.

    Returns:
        0 on success, 2 for bad input, 1 when a file cannot be written or a process dies, 130 when
        interrupted.
    """
    try:
        with clean_staging(target.root):
            line = prepare()
    except UserError as err:
        print_error(err)
        return err.exit_code
    except OSError as err:
        print_error(UserError(str(err)))
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    print(line)
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
