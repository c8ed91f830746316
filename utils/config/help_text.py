"""Text of ``--help``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from utils.config.fields import Option, sections_of

_METAVARS = {int: "N", float: "X", str: "TEXT"}
_INDENT, _WIDTH = 34, 100


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
        words = get_args(option.flag_hint)
        return f"--[no_]{option.name}" + (f" [{'|'.join(words)}]" if words else "")
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
    margin = " " * _INDENT
    first = f"  {usage}".ljust(_INDENT)
    if not first.endswith(" "):
        first = f"{first}\n{margin}"
    return first + textwrap.fill(text, _WIDTH - _INDENT).replace("\n", f"\n{margin}")
