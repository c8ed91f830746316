"""Command-line parser of every script, and ``--help``.

Unlike argparse it reports every mistake, rejects abbreviations, and tells which values the user
set.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from multimae.specs.coercion import did_you_mean, type_name
from utils.config.fields import RESERVED, Option, sections_of

# Letters after the dashes: `-1` and `-1e-5` are values.
_FLAG = re.compile(r"--?[A-Za-z]")
_METAVARS = {int: "N", float: "X", str: "TEXT"}
_HELP_INDENT, _HELP_WIDTH = 34, 100


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


def _metavar(hint: Any) -> str:
    """Placeholder of the value: ``N``, ``X X``, ``{a,b}``."""
    if get_origin(hint) is Literal:
        return "{" + ",".join(get_args(hint)) + "}"
    if get_origin(hint) is tuple:
        return " ".join("..." if arg is Ellipsis else _metavar(arg) for arg in get_args(hint))
    return _METAVARS.get(hint, "YAML")


def format_help(cfg: Any, options: Mapping[str, Option], program: str) -> str:
    """Text of ``--help``: flags by section, under the first line of the section's docstring."""
    lines = [f"usage: {program} [--config FILE.yaml ...] [--FLAG VALUE ...]", "", _title(cfg), ""]
    lines += [
        _entry("--config FILE.yaml", "Read options from YAML; the command line overrides it"),
        _entry("--print_config", "Print the resolved config as YAML and exit"),
    ]
    for section, group in sections_of(cfg):
        entries = [
            _entry(_usage(option), f"{option.help} (default: {_show(option.default)})")
            for option in options.values()
            if option.section == section
        ]
        if entries:
            lines += ["", _title(group) if section else "Other", *entries]
    return "\n".join(lines)


def _title(group: Any) -> str:
    return (type(group).__doc__ or "").strip().split("\n")[0].rstrip(".")


def _usage(option: Option) -> str:
    if option.is_bool:
        return f"--[no_]{option.name}"
    shown = _metavar(option.flag_hint)
    if option.flag_hint != option.base_hint:
        shown = f"{_metavar(option.base_hint)} | {shown}"
    return f"--{option.name} {shown}"


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_show, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value) or "empty"


def _entry(usage: str, text: str) -> str:
    margin = " " * _HELP_INDENT
    first = f"  {usage}".ljust(_HELP_INDENT)
    if not first.endswith(" "):
        first = f"{first}\n{margin}"
    return first + textwrap.fill(text, _HELP_WIDTH - _HELP_INDENT).replace("\n", f"\n{margin}")
