"""Preparation of inputs by a run and by the weights that it uses: compared and replaced."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from multimae.specs.modalities import PREPARATION, Modality


def prepared_as(
    declared: Modality, trained: Modality, explicit: Collection[str], patch_size: int
) -> tuple[Modality, list[str]]:
    """Replace the preprocessing of an input by that of the weights.

    Args:
        declared: Modality of this run.
        trained: Modality of the weights.
        explicit: Fields of ``declared`` that the user set.
        patch_size: Patch side of the model, for modalities without one.

    Returns:
        ``declared`` with the trained values of all :data:`PREPARATION` fields, except those the
        user set to a different value; and a message for each of these.
    """
    values: dict[str, Any] = {}
    differing = []
    for field in PREPARATION:
        own, theirs = getattr(declared, field), getattr(trained, field)
        mapped_by_user = field == "label_map" and field in explicit  # to the weights' class ids
        if mapped_by_user or (field == "class_names" and not theirs):
            values[field] = own
        elif field in explicit and (
            text := differing_fields(declared, trained, [field], patch_size)
        ):
            differing += text
            values[field] = own
        else:
            values[field] = theirs
    return dataclasses.replace(declared, **values), differing


def differing_fields(
    own: Modality, theirs: Modality, fields: Collection[str], patch_size: int
) -> list[str]:
    """Name the ``fields`` whose values mean something else than those of the weights."""
    return [
        f"{f}: the weights' {_text(getattr(theirs, f))}, yours {_text(getattr(own, f))}"
        for f in fields
        if not _same_preparation(f, getattr(own, f), getattr(theirs, f), patch_size)
    ]


def _same_preparation(field: str, own: Any, theirs: Any, patch_size: int) -> bool:
    """Whether a declared value is equivalent to the trained one."""
    if field in ("mean", "std"):
        length = max(len(own), len(theirs))
        pairs = zip(*(v * length if len(v) == 1 else v for v in (own, theirs)), strict=False)
        return len({len(own), len(theirs)} - {1}) < 2 and all(
            math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) for a, b in pairs
        )
    if field == "patch_size":
        return bool((own or patch_size) == (theirs or patch_size))
    if field == "normalization" and own == "computed":
        return bool(theirs == "mean_std")  # the statistics come with the weights
    return bool(own == theirs or own is theirs)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        shown = ", ".join(map(_text, value[:4])) + (", ..." if len(value) > 4 else "")
        return f"({shown})"
    return f"{value:g}" if isinstance(value, float) else str(value)
