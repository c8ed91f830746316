"""Typed configuration: frozen dataclasses <-> YAML <-> command line.

Options are grouped inside the code (``cfg.optim.blr``) and flat outside (``--blr``, ``blr:``).
Precedence: default < ``--config FILE.yaml`` (the later file wins) < command line. Every mistake is
reported at once, before anything is built.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import yaml

from multimae.specs.coercion import did_you_mean
from multimae.specs.errors import UserError, bullet_list
from utils.config.command_line import Setting, read_command_line
from utils.config.fields import Option, option, options_of, sections_of

__all__ = ["ConfigError", "option", "parse_config", "save_config", "to_flat_dict", "to_yaml"]

T = TypeVar("T")
MAX_NODES = 100_000
"""Values of a YAML file, aliases expanded."""


class ConfigError(UserError):
    """The command line or a YAML config is wrong; the message lists every problem."""

    everywhere = True


@runtime_checkable
class Checked(Protocol):
    """A config or section with checks across options."""

    def problems(self) -> Iterable[str]:
        """Contradictions, each as ``"option: what is wrong"``."""
        ...


def parse_config(cls: type[T], argv: Sequence[str] | None = None) -> T:
    """Build the config of a script from its arguments.

    ``--help`` and ``--print_config`` print and exit with 0.

    Args:
        cls: Config class: a frozen dataclass of sections whose fields all have defaults. It and
            its sections may define ``problems()`` (see :class:`Checked`).
        argv: Arguments without the program's name; ``sys.argv[1:]`` if ``None``.

    Raises:
        ConfigError: Unknown flags and keys, bad or missing values, contradictions: all of them.
        TypeError: Two options of ``cls`` share a flag.
    """
    base = cls()
    options = options_of(base)
    line = read_command_line(sys.argv[1:] if argv is None else argv, options)
    if line.help:
        from utils.config.help_text import format_help

        print(format_help(base, options, Path(sys.argv[0]).name))
        raise SystemExit(0)
    problems = list(line.problems)
    settings: list[Setting] = []
    for path in line.config_files:
        from_file, bad = _read_config_file(path, options)
        settings += from_file
        problems += bad
    settings += line.settings

    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    failed: set[str] = set()
    for known, raw, source in settings:
        try:
            values[known.name] = known.coerce(_parse_inline(raw) if known.is_mapping else raw)
            sources[known.name] = source
        except ValueError as err:
            problems.append(f"{source}: {err}")
            failed.add(known.name)
    cfg = _replace(base, options, values)
    problems += _contradictions(cfg, sources, failed)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(
            f"{count} in the configuration (--help lists all options):\n"
            + bullet_list(problems, limit=len(problems))
        )
    if line.print_config:
        print(to_yaml(cfg), end="")
        raise SystemExit(0)
    return cfg


def to_flat_dict(cfg: Any) -> dict[str, object]:
    """Every option's value by its flat name."""
    return {name: option.default for name, option in options_of(cfg).items()}


def to_yaml(cfg: Any) -> str:
    """The config as YAML that ``--config`` reads back to an equal config."""
    options = options_of(cfg).values()
    blocks = []
    for section, _ in sections_of(cfg):
        values = {o.name: o.default for o in options if o.section == section}
        if values:
            text = yaml.dump(
                values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 16
            )
            blocks.append(f"# {section}\n{text}" if section else text)
    return "\n".join(blocks)


def save_config(cfg: Any, path: str | Path) -> None:
    """Write :func:`to_yaml` to a file, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(cfg), encoding="utf-8")


def _replace(base: T, options: Mapping[str, Option], values: Mapping[str, Any]) -> T:
    """``base`` with the options of ``values`` changed, in sections and at the top."""
    changed: Any = base
    for section, group in sections_of(base):
        mine = {name: value for name, value in values.items() if options[name].section == section}
        if hasattr(group, "set_by_user"):
            mine["set_by_user"] = frozenset(mine)
        if section:
            changed = dataclasses.replace(changed, **{section: dataclasses.replace(group, **mine)})
        else:
            changed = dataclasses.replace(changed, **mine)
    result: T = changed
    return result


def _contradictions(cfg: Any, sources: Mapping[str, str], failed: set[str]) -> Iterator[str]:
    """Problems across options, reported under the flag or key that the user wrote.

    Skips options that failed to parse, whose defaults would be reported instead.
    """
    for _, group in sections_of(cfg):
        for problem in group.problems() if isinstance(group, Checked) else ():
            name, colon, rest = problem.partition(":")
            if name not in failed:
                yield sources.get(name, name) + colon + rest


def _read_config_file(path: Path, options: Mapping[str, Option]) -> tuple[list[Setting], list[str]]:
    """Settings and problems of one YAML file."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        content = loader.get_single_data()
    except OSError as err:
        return [], [f"--config {path}: {err.strerror or err}"]
    except (ValueError, RecursionError, yaml.YAMLError) as err:  # ValueError: no such date
        return [], [f"{path}: {_one_line(err)}"]
    if content is None:
        content = {}
    if not isinstance(content, dict):
        return [], [f"{path}: expected `option: value` lines, got a {type(content).__name__}"]
    problems = [f"{path}: {duplicate}" for duplicate in loader.duplicates]
    settings = []
    for key, value in content.items():
        if key in options:
            settings.append(Setting(options[key], value, f"{path}: {key}"))
        else:
            problems.append(f"{path}: {key}: unknown key{did_you_mean(str(key), options)}")
    return settings, problems


def load_yaml(text: str) -> Any:
    """Content of a YAML text without code, of bounded size.

    Raises:
        yaml.YAMLError: Not YAML, or too many values.
    """
    return _Loader(text).get_single_data()


def _parse_inline(value: Any) -> Any:
    """Parse a mapping written as YAML on the command line."""
    if not isinstance(value, str):
        return value
    try:
        loader = _Loader(value)
        value = loader.get_single_data()
    except (ValueError, RecursionError, yaml.YAMLError) as err:
        raise ValueError(f"not YAML: {_one_line(err)}") from err
    if loader.duplicates:
        raise ValueError("; ".join(loader.duplicates))
    return value


def _one_line(err: Exception) -> str:
    if isinstance(err, yaml.MarkedYAMLError) and err.problem_mark is not None:
        what = ", ".join(part for part in (err.context, err.problem) if part)
        return f"line {err.problem_mark.line + 1}: {what}"
    return str(err).replace("\n", " ")


class _Loader(yaml.SafeLoader):
    """Safe loader that records duplicate keys, which PyYAML accepts silently.

    Aliases may not turn a small file into more than :data:`MAX_NODES` values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[str] = []
        self.nodes = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: int) -> Any:
        """Compose a node; every alias counts as what it stands for."""
        is_alias, before = self.check_event(yaml.AliasEvent), self.nodes
        node = super().compose_node(parent, index)
        self.nodes += self.sizes.get(id(node), 1) if is_alias else 1
        if not is_alias:
            self.sizes[id(node)] = self.nodes - before
        if self.nodes > MAX_NODES:
            problem = f"more than {MAX_NODES} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        node.value = [(_scalar_key(key), value) for key, value in node.value]
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                self.duplicates.append(
                    f"line {line}: key '{key.value}' is already on line {seen[key.value]}"
                )
            seen[key.value] = line
        return super().construct_mapping(node, deep)


def _scalar_key(node: yaml.Node) -> yaml.Node:
    """A list as a key, such as the colour ``[128, 64, 128]``, as text."""
    if not isinstance(node, yaml.SequenceNode):
        return node
    text = ", ".join(str(item.value) for item in node.value)
    return yaml.ScalarNode("tag:yaml.org,2002:str", f"[{text}]", node.start_mark, node.end_mark)


class _Dumper(yaml.SafeDumper):
    """Safe dumper that writes lists in one line and expands aliases."""

    def represent_sequence(
        self, tag: str, sequence: Iterable[Any], flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)

    def ignore_aliases(self, data: Any) -> bool:
        return True
