"""Changing single patches of an image by hand: what would the other modalities look like then?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from multimae.nn.tokens import Size
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec
from utils.logs.errors import UserError

Array = npt.NDArray[Any]
EditKind = Literal["class", "colour", "shift"]
Edit = int | float | str
"""A class id, a colour ``#rrggbb``, or a shift as a part of the image's own range."""

Edits = dict[int, Edit]
"""By patch, counted row by row."""

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_RANGE = (2, 98)  # percentiles


def edit_kind(modality: Modality) -> EditKind:
    """How patches of a modality are changed."""
    if modality.is_labels:
        return "class"
    coloured = modality.num_channels == 3 and modality.max_value <= 255
    return "colour" if coloured else "shift"


def parse_edits(raw: object, modality: Modality, grid: Size) -> Edits:
    """Edits as a page sends them: ``{"12": value}``.

    Raises:
        UserError: An unknown patch, or a value that does not fit the modality.
    """
    if not isinstance(raw, Mapping):
        raise UserError(f"The edits of {modality.name} must map patches to values.")
    edits: Edits = {}
    for key, value in raw.items():
        if not str(key).isdecimal() or int(key) >= grid[0] * grid[1]:
            raise UserError(f"{modality.name} has no patch {key}.")
        edits[int(key)] = _value(value, modality)
    return edits


def apply_edits(pixels: Array, edits: Edits, modality: Modality, grid: Size) -> Array:
    """A copy of ``pixels`` with every edited patch changed.

    Args:
        pixels: Stored values, ``(h, w)`` or ``(h, w, C)``.
        edits: Checked by :func:`parse_edits`.
        modality: Row of the table.
        grid: Rows and columns of patches.
    """
    if not edits:
        return pixels
    changed: Array = pixels.copy()
    high, wide = pixels.shape[0] // grid[0], pixels.shape[1] // grid[1]
    kind = edit_kind(modality)
    low, top = np.percentile(pixels, _RANGE).tolist()
    span = max(top - low, 1.0)
    for index, value in edits.items():
        row, column = divmod(index, grid[1])
        patch = np.s_[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
        if kind == "shift":
            moved = pixels[patch].astype(np.float64) + float(value) * span
            changed[patch] = np.clip(np.rint(moved), 0, modality.max_value)
        else:
            changed[patch] = list(bytes.fromhex(str(value)[1:])) if kind == "colour" else value
    return changed


def _value(value: object, modality: Modality) -> Edit:
    kind = edit_kind(modality)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "class" and number and value in range(modality.num_classes):
        return int(value)  # type: ignore[call-overload, no-any-return]
    if kind == "colour" and isinstance(value, str) and _COLOUR.fullmatch(value):
        return value
    if kind == "shift" and number and -1 <= value <= 1:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    want = {
        "class": f"a class id in 0..{modality.num_classes - 1}",
        "colour": "a colour such as #c04030",
        "shift": "a number in -1..1",
    }
    raise UserError(f"An edit of {modality.name} is {want[kind]}, not {value!r}.")


Mask = npt.NDArray[np.bool_]
"""``[rows, columns]``, true where a patch is visible."""

_NO_SHARE = 1e-4  # a Dirichlet concentration must be positive


def patch_grid(modality: Modality, spec: ModelSpec) -> Size:
    """Rows and columns of a modality's patches."""
    count = spec.image_size // (modality.patch_size or spec.patch_size)
    return count, count


def to_bits(mask: Mask) -> str:
    """A mask row by row, ``1`` where visible."""
    return "".join("1" if seen else "0" for seen in mask.ravel())


def from_bits(bits: object, grid: Size, name: str) -> Mask:
    """Inverse of :func:`to_bits`.

    Raises:
        UserError: Not ``rows * columns`` characters 0 or 1.
    """
    count = grid[0] * grid[1]
    if not isinstance(bits, str) or len(bits) != count or set(bits) - {"0", "1"}:
        raise UserError(
            f"The visible patches of {name} must be {count} characters 0 or 1, row by row."
        )
    return np.array([bit == "1" for bit in bits]).reshape(grid)


def concentrations(concentration: float, shares: Mapping[str, float]) -> dict[str, float]:
    """Dirichlet concentration of every modality.

    Args:
        concentration: Low: a draw favours few modalities. High: it keeps to the shares.
        shares: Expected part of the patches by modality, of any sum.

    Returns:
        ``concentration * share``, where the mean share is 1.

    Raises:
        UserError: No concentration, or no share at all.
    """
    total = sum(max(0.0, share) for share in shares.values())
    if not concentration > 0 or not total > 0:
        raise UserError("Give at least one modality a share, and a concentration above 0.")
    return {
        name: max(_NO_SHARE, concentration * len(shares) * share / total)
        for name, share in shares.items()
    }
