"""Argument parser of commands: defaults in the help, no abbreviations, near names in errors."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from multimae.specs.coercion import did_you_mean
from multimae.specs.errors import UserError, print_error

_FLAG = re.compile(r"--[A-Za-z][\w-]*")
_NO_DEFAULT = re.compile(r"\s*\(default:\s+(None|False|\[\]|)\)")
_TOLD = re.compile(r"\)\s+\(default:.*?\)(?=\n|$)", re.DOTALL)  # the help ends in parentheses
_LIST = re.compile(r"\(default:\s+[\[(](.*?)[\])]\)", re.DOTALL)
_LIST_SIGNS = re.compile("[,']")


def _local_path(text: str) -> Path:
    """A path of this machine: as one, a URL would be a folder that does not exist."""
    if re.match(r"\w[\w+.-]+://", text):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL, but this command reads and writes local files here: copy it first"
        )
    return Path(text)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description and appends defaults."""


class CommandParser(argparse.ArgumentParser):
    """Parser of one command or of subcommands.

    Args:
        description: Text above the options, such as the docstring of the command.
        passes_unknown: Whether unknown flags are returned by ``parse_known_args``, for another
            command; they are errors otherwise.
        **kwargs: Of :class:`argparse.ArgumentParser`.
    """

    def __init__(
        self, description: str | None = None, *, passes_unknown: bool = False, **kwargs: Any
    ) -> None:
        """Create the parser."""
        kwargs = {"formatter_class": _HelpFormatter, "allow_abbrev": False, **kwargs}
        super().__init__(description=description, **kwargs)
        self.register("type", Path, _local_path)
        self.passes_unknown = passes_unknown

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse; unknown arguments are an error unless they are passed on."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and not self.passes_unknown:
            flags = [arg.partition("=")[0] for arg in unknown if arg.startswith("-")]
            if not flags:
                self.error(f"'{unknown[0]}': not expected")
            known = [*dict.fromkeys(_FLAG.findall(self.format_usage())), "--help"]
            self.error("; ".join(f"{f}: unknown flag{did_you_mean(f, known)}" for f in flags))
        return found, unknown

    def format_help(self) -> str:
        """Text of ``--help``, without defaults that say nothing or that the text tells."""
        text = _TOLD.sub(")", _NO_DEFAULT.sub("", super().format_help()))
        return _LIST.sub(lambda found: f"(default: {_LIST_SIGNS.sub('', found[1])})", text)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong in one line and exit with 2."""
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if wrong:
            message += did_you_mean(wrong[1], re.findall(r"[\w.-]+", wrong[2]))
        print_error(UserError(f"{message} ({self.prog} --help lists all options)"))
        sys.exit(UserError.exit_code)
