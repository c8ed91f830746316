"""The folders of ``data_path``: one, or a list to sample from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

_LARGEST_WEIGHT = 1e9


class TrainSources:
    """Training folders of a run."""

    data_path: str | tuple[Mapping[str, Any], ...]

    @property
    def sources(self) -> tuple[Mapping[str, Any], ...]:
        """Training folders with their weights; empty for a single folder."""
        return () if isinstance(self.data_path, str) else self.data_path

    @property
    def mix(self) -> list[tuple[str, float]]:
        """Paths and normalized weights of ``sources``."""
        total = sum(source["weight"] for source in self.sources)
        return [(s["path"], round(s["weight"] / total, 9)) for s in self.sources]

    @property
    def roots(self) -> tuple[str, ...]:
        """Training folders."""
        if isinstance(self.data_path, str):
            return (self.data_path,)
        return tuple(str(source.get("path", "")) for source in self.data_path)

    def source_problems(self) -> Iterator[str]:
        """Lists that are empty, or hold something else."""
        if not self.roots:
            yield "data_path: the list is empty"
        for i, source in enumerate(self.sources):
            weight = source.get("weight")
            if set(source) != {"path", "weight"} or not isinstance(source["path"], str):
                yield f"data_path: entry {i} is {dict(source)}; expected {{path: ..., weight: ...}}"
            elif not isinstance(weight, int | float) or not 0 < weight < math.inf:
                yield f"data_path: weight {weight!r} of {source['path']} is not above 0"
            elif isinstance(weight, bool) or weight > _LARGEST_WEIGHT:
                yield f"data_path: weight {weight!r} of {source['path']} is not up to 1e9"
