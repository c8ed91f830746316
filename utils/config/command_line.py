"""Command-line parser of every script.

Unlike argparse it reports every mistake, rejects abbreviations, and tells which values the user
set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from multimae.specs.coercion import did_you_mean, type_name
from utils.config.fields import RESERVED, Option

# Letters after the dashes: `-1` and `-1e-5` are values.
_FLAG = re.compile(r"--?[A-Za-z]")


class Setting(NamedTuple):
    """A raw value set by the user, and where: a flag, or a file and key."""

    option: Option
    value: Any
    source: str


@dataclass
class CommandLine:
    """Parsed arguments."""

    settings: list[Setting] = field(default_factory=list)
    config_files: list[Path] = field(default_factory=list)
    help: bool = False
    print_config: bool = False
    problems: list[str] = field(default_factory=list)


def read_command_line(argv: Sequence[str], options: Mapping[str, Option]) -> CommandLine:
    """Match arguments to options; values stay strings, or lists of strings.

    Args:
        argv: Arguments without the program's name.
        options: Known options by name.

    Returns:
        Settings in order, and every mistake in ``problems``.
    """
    line = CommandLine()
    by_flag = {flag: option for option in options.values() for flag in option.flags}
    for flag, values in _groups(argv):
        option = by_flag.get(flag)
        if option is not None:
            _read_option(line, option, flag, values)
        elif flag in ("--help", "-h"):
            line.help = True
        elif flag == "--print_config":
            line.print_config = True
            line.problems += [f"{flag}: takes no value, got '{values[0]}'"] if values else []
        elif flag == "--config":
            line.config_files += [Path(value) for value in values]
            line.problems += [] if values else ["--config: needs the path of a YAML file"]
        elif flag:
            near = did_you_mean(flag, [*by_flag, *RESERVED])
            line.problems.append(f"{flag}: unknown flag{near}")
        elif values:
            line.problems.append(f"'{values[0]}': expected a flag (--NAME) first")
    return line


def _groups(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """``--a 1 2 --b=3`` as ``("--a", ["1", "2"]), ("--b", ["3"])``; leading values under ``""``."""
    flag, values = "", list[str]()
    for arg in argv:
        if not _FLAG.match(arg):
            values.append(arg)
            continue
        yield flag, values
        flag, equals, inline = arg.partition("=")
        values = [inline] if equals else []
    yield flag, values


def _read_option(line: CommandLine, option: Option, flag: str, values: list[str]) -> None:
    if flag in option.off_flags:
        if values:
            line.problems.append(f"{flag}: takes no value, got '{values[0]}'")
        line.settings.append(Setting(option, False, flag))
    elif not values and option.is_bool:
        line.settings.append(Setting(option, True, flag))
    elif not values:
        line.problems.append(f"{flag}: needs a value ({type_name(option.base_hint)})")
    elif len(values) == 1:
        line.settings.append(Setting(option, values[0], flag))
    elif option.is_tuple:
        line.settings.append(Setting(option, values, flag))
    else:
        line.problems.append(f"{flag}: takes one value, got {len(values)}: {' '.join(values)}")
