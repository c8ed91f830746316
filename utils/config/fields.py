"""Options as dataclass fields.

A config is a frozen dataclass whose fields are *sections* (frozen dataclasses of options) or
options. Users see one flat namespace: an option's name is its flag and its YAML key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from multimae.specs.coercion import coerce

OnResume = Literal["free", "applied", "refused"]
"""How a resumed run handles a changed value: use it silently (results do not depend on it), use it
and log the change, or refuse to resume."""

RESERVED = {"--help": "the parser", "--config": "the parser", "--print_config": "the parser"}


def option(
    default: Any,
    help: str,
    *,
    within: str | None = None,
    off: str | None = None,
    on_resume: OnResume | None = None,
) -> Any:
    """Declare an option of a section.

    For example ``lr: float = option(1e-4, "Learning rate", within="(0, inf)")``.

    Args:
        default: Value, or a factory (for mappings and for values that depend on the machine).
        help: One line for ``--help``.
        within: Interval that every number of the value must lie in, e.g. ``"[0, 1)"``.
        off: Alias, without dashes, of ``--no_NAME``.
        on_resume: See :data:`OnResume`; ``None`` for that of the option it overrides, else refused.
    """
    metadata = {"help": help, "within": within, "off": off, "on_resume": on_resume}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def user_set() -> Any:
    """Declare ``set_by_user``: names of the section's options in YAML or on the command line."""
    return dataclasses.field(default=frozenset(), repr=False, compare=False)


@dataclass(frozen=True)
class Option:
    """One option of a config.

    Attributes:
        name: Flag without dashes, YAML key and field name.
        section: Field of the config that holds it; empty for the config itself.
        hint: Annotated type.
        default: Value in the config's default instance.
        help: One line for ``--help``.
        within: See :func:`option`.
        off: See :func:`option`.
        on_resume: What a resumed run does with a changed value.
    """

    name: str
    section: str
    hint: Any
    default: Any
    help: str = ""
    within: str | None = None
    off: str | None = None
    on_resume: OnResume = "refused"

    @property
    def path(self) -> str:
        """Attribute path, e.g. ``optim.lr``."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def base_hint(self) -> Any:
        """Annotated type without ``| None`` and further alternatives, which only YAML has."""
        members = [arg for arg in get_args(self.hint) if arg is not type(None)]
        return members[0] if get_origin(self.hint) in (Union, UnionType) else self.hint

    @property
    def flag_hint(self) -> Any:
        """Type of a flag's values: the list of ``int | tuple[int, int]``, the words of a switch."""
        members = get_args(self.hint) if get_origin(self.hint) in (Union, UnionType) else ()
        lists = [m for m in members if get_args(m)[:1] in ((int,), (float,))]
        words = [m for m in members if get_origin(m) is Literal]
        return (lists or words or [self.base_hint])[0]

    @property
    def is_bool(self) -> bool:
        """Whether it is a switch."""
        return self.base_hint is bool

    @property
    def is_tuple(self) -> bool:
        """Whether a flag takes several values."""
        return get_origin(self.flag_hint) is tuple

    @property
    def is_mapping(self) -> bool:
        """Whether it is a YAML mapping."""
        return get_origin(self.base_hint) is Mapping

    @property
    def off_flags(self) -> tuple[str, ...]:
        """Flags that set a switch to false."""
        if not self.is_bool:
            return ()
        return (f"--no_{self.name}", *([f"--{self.off}"] if self.off else []))

    @property
    def flags(self) -> tuple[str, ...]:
        """All flags."""
        return (f"--{self.name}", *self.off_flags)

    def coerce(self, value: Any) -> Any:
        """``value`` in the option's type.

        Raises:
            ValueError: It does not fit the type or lies outside ``within``.
        """
        value = coerce(value, self.hint)
        numbers = value if isinstance(value, tuple) else (value,)
        if self.within and not all(n is None or _inside(n, self.within) for n in numbers):
            raise ValueError(f"{value} is not in {self.within}")
        return value


def sections_of(cfg: Any) -> Iterator[tuple[str, Any]]:
    """``(name, section)`` pairs of a config; last the config itself under ``""``."""
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            yield field.name, value
    yield "", cfg


def options_of(cfg: Any) -> dict[str, Option]:
    """Options of a config instance by name; its values are their defaults.

    Raises:
        TypeError: Two options share a flag.
    """
    options: dict[str, Option] = {}
    owners = dict(RESERVED)
    for section, group in sections_of(cfg):
        hints = get_type_hints(type(group))
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if dataclasses.is_dataclass(value) or field.name == "set_by_user":
                continue
            declared = {**field.metadata, "on_resume": _on_resume(type(group), field.name)}
            option = Option(field.name, section, hints[field.name], value, **declared)
            for flag in option.flags:
                if flag in owners:
                    raise TypeError(
                        f"{type(cfg).__name__}: {flag} belongs to both {owners[flag]} and "
                        f"{option.path}; option names must be unique, rename one"
                    )
                owners[flag] = option.path
            options[option.name] = option
    return options


def _on_resume(section: type, name: str) -> OnResume:
    """The class declared last for an option, by the section or one that it extends."""
    for cls in section.__mro__:
        field = getattr(cls, "__dataclass_fields__", {}).get(name)
        if field is not None and field.metadata.get("on_resume"):
            found: OnResume = field.metadata["on_resume"]
            return found
    return "refused"


def _inside(number: float, interval: str) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)
