"""Label maps: stored ids or colours and the class ids that they mean.

A map is written in YAML as ``{7: 0, 8: 1, default: 255}``, ``{'#804080': 0}`` or
``{[128, 64, 128]: 0}``. Specs keep it as sorted strings ``"7=0"``, ``"#804080=0"``,
``"default=255"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae.specs.modalities import VOID

DEFAULT = "default"
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_LARGEST = 65535
_WIDEST = 2**24  # entries of a table
_SHOWN = 10  # values in a message

LabelMap = tuple[str, ...]


def parse_label_map(value: Any) -> LabelMap:
    """Sorted strings ``KEY=ID`` of a mapping, or of a list of such strings.

    Raises:
        ValueError: Not a label map; lists every problem.
    """
    if isinstance(value, Mapping):
        pairs = [(_key(k), _id(v), f"{k}: {v}") for k, v in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        split = [str(entry).partition("=") for entry in value]
        pairs = [(_key(k), _id(v), f"{k}{equals}{v}") for k, equals, v in split]
    else:
        raise ValueError(f"expected ids or colours and their class ids, got {value!r}")
    bad = [text for key, target, text in pairs if key is None or target is None]
    if bad:
        raise ValueError(
            f"not an id, '#rrggbb', [r, g, b] or default and a class id (255: void): "
            f"{'; '.join(bad[:5])}. Quote colours in YAML, where # starts a comment"
        )
    found: dict[str, int] = {}
    for key, target, _ in pairs:
        if found.setdefault(str(key), int(target or 0)) != target:
            raise ValueError(f"{key} has two class ids, {found[str(key)]} and {target}")
    kinds = {key.startswith("#") for key in found if key != DEFAULT}
    if len(kinds) > 1:
        raise ValueError("give either ids or colours")
    if found and not kinds:
        raise ValueError("default needs ids or colours beside it")
    return tuple(f"{key}={found[key]}" for key in sorted(found, key=_order))


def pairs_of(label_map: LabelMap) -> dict[int, int]:
    """Stored ids, or colours as 0xrrggbb, and their class ids; without the default."""
    split = (entry.split("=") for entry in label_map if not entry.startswith(DEFAULT))
    return {int(key.lstrip("#"), 16 if key[0] == "#" else 10): int(target) for key, target in split}


def default_of(label_map: LabelMap) -> int | None:
    """Class id of everything else; ``None`` if that is an error."""
    last = label_map[-1] if label_map else ""
    return int(last.partition("=")[2]) if last.startswith(DEFAULT) else None


def maps_colours(label_map: LabelMap) -> bool:
    """Whether the keys are colours."""
    return bool(label_map) and label_map[0].startswith("#")


def targets_of(label_map: LabelMap) -> set[int]:
    """Class ids that occur."""
    return {int(entry.rpartition("=")[2]) for entry in label_map}


def with_stored_void(label_map: LabelMap, stored: float) -> LabelMap:
    """Add a stored id that is void; one that the map has keeps its class."""
    if maps_colours(label_map) or stored in pairs_of(label_map) or stored != int(stored):
        return label_map
    return parse_label_map([*label_map, f"{int(stored)}={VOID}"])


def mapped_names(names: Sequence[str], label_map: LabelMap) -> tuple[str, ...]:
    """Names of the class ids from those of the stored ids.

    Names of stored ids that become one class are joined by ``+``. If ``names`` has none for some
    stored id of the map, or the map has colours, they already name the class ids.
    """
    pairs, default = pairs_of(label_map), default_of(label_map)
    if not label_map or maps_colours(label_map) or not set(pairs) <= set(range(len(names))):
        return tuple(names)
    if default is not None:
        pairs |= {i: default for i in range(len(names)) if i not in pairs}
    titles: dict[int, list[str]] = {}
    for stored, target in sorted(pairs.items()):
        titles.setdefault(target, []).append(names[stored])
    titles.pop(VOID, None)
    return tuple("+".join(titles.get(i, [str(i)])) for i in range(max(titles, default=-1) + 1))


def map_labels(values: npt.NDArray[Any], label_map: LabelMap) -> npt.NDArray[np.integer]:
    """Class ids ``(H, W)`` of a stored label map.

    Args:
        values: Ids ``(H, W)``, or colours ``(H, W, 3)`` of 8 bits (grey: ``(H, W)``).
        label_map: Not empty.

    Raises:
        ValueError: Values that the map does not have; lists them with their number of pixels.
    """
    if maps_colours(label_map):
        if values.dtype != np.uint8:
            raise ValueError(f"label_map has colours of 8 bits, the file {values.dtype}.")
        rgb = (values if values.ndim == 3 else values[..., None].repeat(3, -1)).astype(np.int32)
        stored = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    else:
        stored = values.astype(np.int64, copy=False)
    table, low = _table(label_map)
    index = stored - low
    known = (index >= 0) & (index < len(table))
    ids = np.where(known, table[np.where(known, index, 0)], 0) - 1
    missing = ids < 0
    if missing.any():
        default = default_of(label_map)
        if default is None:
            raise ValueError(_unmapped(stored[missing], maps_colours(label_map)))
        ids[missing] = default
    return ids


@lru_cache(maxsize=16)
def _table(label_map: LabelMap) -> tuple[npt.NDArray[np.int32], int]:
    """Class id + 1 by stored value, from the smallest stored value on; 0 for others."""
    pairs = pairs_of(label_map)
    low, high = min(pairs), max(pairs)
    if high - low >= _WIDEST:
        raise ValueError(f"label_map: the stored ids {low} and {high} are too far apart.")
    table = np.zeros(high - low + 1, np.int32)
    for stored, target in pairs.items():
        table[stored - low] = target + 1
    return table, low


def _unmapped(values: npt.NDArray[Any], colours: bool) -> str:
    found, counts = np.unique(values, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_SHOWN]
    shown = [f"#{found[i]:06x}" if colours else str(found[i]) for i in most]
    listed = ", ".join(f"{s} ({counts[i]} pixels)" for s, i in zip(shown, most, strict=True))
    kind = "colours" if colours else "ids"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (
        f"{len(found)} {kind} are not in label_map: {listed}{more}. Add them, or `default: 255` "
        "to make all others void."
    )


def _key(value: Any) -> str | None:
    """Canonical key; ``None`` if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, tuple | list):
        value = ",".join(map(str, value))
    text = re.sub(r"[\s\[\]()]", "", str(value)).lower()
    if text == DEFAULT or _COLOUR.fullmatch(text):
        return text
    if re.fullmatch(r"\d+,\d+,\d+", text):
        levels = [int(v) for v in text.split(",")]
        return "#" + bytes(levels).hex() if max(levels) <= 255 else None
    return str(int(text)) if re.fullmatch(r"-?\d{1,9}", text) else None


def _id(value: Any) -> int | None:
    text = str(value).strip()
    is_id = not isinstance(value, bool) and re.fullmatch(r"\d{1,5}", text)
    return int(text) if is_id and int(text) <= _LARGEST else None


def _order(key: str) -> tuple[int, int, str]:
    is_number = key.lstrip("-").isdigit()
    return (2 if key == DEFAULT else 0, int(key) if is_number else 0, key)
