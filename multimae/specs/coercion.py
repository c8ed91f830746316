"""Convert YAML values and command-line strings to the annotated type of a dataclass field.

Modalities, YAML configs and flags all use it: ``lr: 1e-4`` (a string in YAML 1.1) and ``--lr 1e-4``
give the same number.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_NONE = ("none", "null")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for a mistyped or abbreviated name, else nothing."""
    known = list(known)
    near = get_close_matches(name, known, n=1) or [k for k in known if k.startswith(name)]
    return f"; did you mean {near[0]}?" if near else ""


def repeated(names: Iterable[str]) -> str:
    """Names that occur more than once, for a message; empty if none does."""
    counts = Counter(name for name in names if name)
    return ", ".join(f"'{name}'" for name, count in counts.items() if count > 1)


def type_name(hint: Any) -> str:
    """Readable name of a type hint for error messages, e.g. ``number or null``."""
    args = get_args(hint)
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if _is_union(hint):
        return " or ".join("null" if a is type(None) else type_name(a) for a in args)
    if origin is tuple:
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"list of {count}{type_name(args[0])}s"
    if origin is not None and issubclass(origin, Mapping):
        return "mapping"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def coerce(value: Any, hint: Any) -> Any:
    """Convert ``value`` to the type ``hint``.

    Args:
        value: Value from YAML or the command line.
        hint: ``bool | int | float | str``, a ``Literal`` of strings, ``tuple[T, ...]``,
            ``tuple[T, T]``, ``T | None``, ``T | tuple[U, ...]``, ``T | Literal[...]``, or a class,
            whose instances are returned unchanged.

    Raises:
        ValueError: Invalid value; the message names the expected type.
    """
    if _is_union(hint):
        return _coerce_union(value, hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if args[-1] is not Ellipsis and len(items) != len(args):
            raise _mismatch(value, hint)
        return tuple(coerce(item, args[0]) for item in items)
    if hint in (bool, int, float, str):
        return _coerce_scalar(value, hint)
    fits = value in args if origin is Literal else isinstance(value, origin or hint)
    if not fits:
        raise _mismatch(value, hint)
    return value


def _mismatch(value: Any, hint: Any) -> ValueError:
    shown = "null" if value is None else repr(value)
    return ValueError(f"expected {type_name(hint)}, got {shown}")


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _coerce_union(value: Any, hint: Any) -> Any:
    """Convert to ``T | None`` (from ``none``, too), ``T | tuple[...]`` or ``T | Literal[...]``."""
    args = get_args(hint)
    if type(None) in args and (value is None or str(value).lower() in _NONE):
        return None
    first, *others = (arg for arg in args if arg is not type(None))
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    lists = [arg for arg in others if get_origin(arg) is tuple and is_list]
    words = [word for arg in others if get_origin(arg) is Literal for word in get_args(arg)]
    if value in words:
        return value
    try:
        return coerce(value, lists[0] if lists else first)
    except ValueError as err:
        raise (_mismatch(value, hint) if words else err) from err


def _coerce_scalar(value: Any, hint: type) -> Any:
    if hint is bool:
        text = str(value).lower()
        if not isinstance(value, bool | str) or text not in _TRUE + _FALSE:
            raise _mismatch(value, hint)
        return text in _TRUE
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _mismatch(value, hint)
    try:
        return _to_int(value) if hint is int else hint(value)
    except (ValueError, OverflowError) as err:
        raise _mismatch(value, hint) from err


def _to_int(value: str | int | float) -> int:
    """Accept ``3``, ``"3"``, ``3.0`` and ``"3e2"``, but not ``3.5``."""
    try:
        number = int(value)
    except ValueError:
        value = float(value)
        number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError(value)
    return number
