"""Class weights of cross-entropy: given, read from a file, or computed from the training labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae.specs.coercion import did_you_mean
from multimae.specs.errors import UserError, bullet_list

BALANCED = "balanced"
Floats = npt.NDArray[np.float64]


def median_frequency(counts: npt.ArrayLike, present: npt.ArrayLike) -> Floats:
    """Median class frequency divided by that of each class; 0 for classes that do not occur.

    The frequency is the share of a class in the images that contain it (Eigen and Fergus, 2015).

    Args:
        counts: Pixels by class.
        present: By class, the pixels of all images that contain it.
    """
    counts, present = np.asarray(counts, np.float64), np.asarray(present, np.float64)
    used, weights = counts > 0, np.zeros(len(counts))
    if used.any():
        frequency = counts[used] / present[used]
        weights[used] = np.median(frequency) / frequency
    return weights


def balanced_weights(counts: npt.ArrayLike, present: npt.ArrayLike) -> tuple[float, ...]:
    """:func:`median_frequency`; classes that do not occur get the largest weight."""
    weights = median_frequency(counts, present)
    return tuple(np.where(weights > 0, weights, weights.max(initial=0) or 1.0).tolist())


def is_list(option: Sequence[str]) -> bool:
    """Whether ``--class_weights`` holds numbers, not ``balanced`` or a file."""
    try:
        return bool([float(value) for value in option])
    except ValueError:
        return False


def option_problem(option: Sequence[str]) -> str:
    """What is wrong with the values of ``--class_weights``; empty if nothing."""
    if is_list(option):
        bad = [value for value in option if not _is_weight(value)]
        if bad or not any(map(float, option)):
            return f"weights are finite and >= 0, not all 0; got {(bad or option)[0]}"
    elif len(option) != 1:
        return f"give balanced, a file or numbers; got {' '.join(option) or 'nothing'}"
    return ""


def resolve_weights(
    option: Sequence[str],
    names: Sequence[str],
    ids: Sequence[int],
    count: Callable[[], tuple[npt.ArrayLike, npt.ArrayLike]],
    void: Mapping[int, str] | None = None,
) -> tuple[float, ...]:
    """Weights of ``--class_weights``, one per class.

    Args:
        option: Numbers, ``balanced``, or a file (see :func:`read_weights`).
        names: Class names; empty if unknown.
        ids: Stored id of every class.
        count: Arguments of :func:`balanced_weights`, from the training labels.
        void: Names of stored ids that are void.

    Raises:
        UserError: Another number of weights than of classes, or a bad file.
    """
    if option == (BALANCED,):
        return balanced_weights(*count())
    if not is_list(option):
        return read_weights(option[0], names, ids, void or {})
    if len(option) != len(ids):
        ends = f", from '{names[0]}' to '{names[-1]}'" if names else ""
        raise UserError(
            f"class_weights: {len(option)} weights for {len(ids)} classes{ends}. Give one per "
            "class, in the order of the ids, void aside."
        )
    return tuple(map(float, option))


def read_weights(
    path: str | Path, names: Sequence[str], ids: Sequence[int], void: Mapping[int, str]
) -> tuple[float, ...]:
    """Read weights by class name or stored id from a JSON or YAML file.

    Args:
        path: The file.
        names: Class names by class; empty if unknown.
        ids: Stored id of every class.
        void: Names of stored ids that are void, whose weights are ignored.

    Raises:
        UserError: The file cannot be read, or names no weight for a class, an unknown class or no
            number.
    """
    content = _read(path)
    keys = {str(i): k for k, i in enumerate(ids)} | {name: k for k, name in enumerate(names)}
    ignored = {*map(str, void), *filter(None, void.values())} - set(keys)
    weights: dict[int, float] = {}
    problems = []
    for name, value in content.items():
        key = str(name)
        if key in ignored:
            continue
        if key not in keys:
            problems.append(f"unknown class '{key}'{did_you_mean(key, keys)}")
        elif not _is_weight(value):
            problems.append(f"class '{key}': a weight is a finite number >= 0, got {value!r}")
        elif keys[key] in weights:
            problems.append(f"class '{key}' has two weights, by name and by id")
        else:
            weights[keys[key]] = float(value)
    missing = [names[k] if names else str(i) for k, i in enumerate(ids) if k not in weights]
    if missing and not problems:
        problems.append(f"no weight for {len(missing)} classes: {', '.join(missing[:10])}")
    if not problems and not any(weights.values()):
        problems.append("all weights are 0")
    if problems:
        raise UserError(f"class_weights {path}:\n{bullet_list(problems)}")
    return tuple(weights[k] for k in range(len(ids)))


def describe_weights(weights: Sequence[float], names: Sequence[str], ids: Sequence[int]) -> str:
    """The weights by class, for the log."""
    titles = names or [str(i) for i in ids]
    return "class weights: " + ", ".join(
        f"{title} {weight:.3g}" for title, weight in zip(titles, weights, strict=True)
    )


def _read(path: str | Path) -> dict[Any, Any]:
    import yaml

    from utils.config.parse import load_yaml

    try:
        content = load_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as err:
        reason = (getattr(err, "strerror", None) or str(err)).replace("\n", " ")
        raise UserError(
            f"class_weights {path}: {reason}. Give none, balanced, one number per class, or a JSON "
            "or YAML file of weights by class name or id."
        ) from err
    if not isinstance(content, dict):
        raise UserError(f"class_weights {path}: expected weights by class name or id, like road: 2")
    return content


def _is_weight(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value)) and float(value) >= 0
    except (TypeError, ValueError):
        return False
