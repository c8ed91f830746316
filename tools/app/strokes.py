"""Painter values: which patches are visible, and edits of single patches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from multimae.nn.tokens import Size, as_size
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec

Array = npt.NDArray[Any]
EditKind = Literal["class", "colour", "shift"]
Edit = int | float | str
"""A class id, a color ``#rrggbb``, or a shift as a fraction of the image's value range."""

Edits = dict[int, Edit]
"""Edit by patch index, row-major."""

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_RANGE = (2, 98)  # percentiles


def edit_kind(modality: Modality) -> EditKind:
    """Return how patches of a modality are edited."""
    if modality.is_labels:
        return "class"
    coloured = modality.num_channels == 3 and modality.max_value <= 255
    return "colour" if coloured else "shift"


def parse_edits(raw: object, modality: Modality, grid: Size) -> Edits:
    """Check the edits sent by the page, ``{"12": value}``.

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
    """Return a copy of ``pixels`` with the edits applied.

    Args:
        pixels: Stored values, ``(h, w)`` or ``(h, w, C)``.
        edits: Checked by :func:`parse_edits`.
        modality: Spec of the image.
        grid: Rows and columns of patches.
    """
    if not edits:
        return pixels
    changed: Array = pixels.copy()
    height, width = pixels.shape[0] // grid[0], pixels.shape[1] // grid[1]
    kind = edit_kind(modality)
    low, top = np.percentile(pixels, _RANGE).tolist()
    span = max(top - low, 1.0)
    for index, value in edits.items():
        row, column = divmod(index, grid[1])
        patch = np.s_[row * height : (row + 1) * height, column * width : (column + 1) * width]
        if kind == "shift":
            shifted = pixels[patch].astype(np.float64) + float(value) * span
            changed[patch] = np.clip(np.rint(shifted), 0, modality.max_value)
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

_MIN_CONCENTRATION = 1e-4  # must be positive


def patch_grid(modality: Modality, spec: ModelSpec) -> Size:
    """Return the rows and columns of a modality's patches."""
    height, width = as_size(spec.image_size)
    patch = modality.patch_size or spec.patch_size
    return height // patch, width // patch


def to_bits(mask: Mask) -> str:
    """Encode a mask row by row, ``1`` where visible."""
    return "".join("1" if visible else "0" for visible in mask.ravel())


def from_bits(bits: object, grid: Size, name: str) -> Mask:
    """Decode the output of :func:`to_bits`.

    Raises:
        UserError: Not ``rows * columns`` characters 0 or 1.
    """
    count = grid[0] * grid[1]
    if not isinstance(bits, str) or len(bits) != count or set(bits) - {"0", "1"}:
        raise UserError(f"The visible patches of {name} must be {count} characters, each 0 or 1.")
    return np.array([bit == "1" for bit in bits]).reshape(grid)


def concentrations(concentration: float, shares: Mapping[str, float]) -> dict[str, float]:
    """Return the Dirichlet concentration of every modality.

    Args:
        concentration: Low values favor one modality per sample, high values follow the shares.
        shares: Expected fraction of the patches by modality, unnormalized.

    Returns:
        ``concentration * share``, with shares scaled to mean 1.

    Raises:
        UserError: The concentration or all shares are 0.
    """
    total = sum(max(0.0, share) for share in shares.values())
    if not concentration > 0 or not total > 0:
        raise UserError("At least one share and the concentration must be above 0.")
    return {
        name: max(_MIN_CONCENTRATION, concentration * len(shares) * share / total)
        for name, share in shares.items()
    }
