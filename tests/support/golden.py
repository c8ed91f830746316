"""Reading the golden tensors under tests/data (made with the published implementation)."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Golden:
    """One case: its config and its tensors by group (``weight``, ``input``, ``output`` ...)."""

    config: dict[str, Any]
    groups: dict[str, dict[str, Tensor]]

    def __getitem__(self, group: str) -> dict[str, Tensor]:
        return self.groups[group]

    def to(self, device: torch.device) -> Golden:
        """The same tensors on ``device``."""
        groups = {
            group: {name: tensor.to(device) for name, tensor in tensors.items()}
            for group, tensors in self.groups.items()
        }
        return Golden(self.config, groups)


def golden(case: str) -> Golden:
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    with safe_open(str(DATA / "parity" / f"{case}.safetensors"), framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        for key in file.keys():  # noqa: SIM118 - not a dict
            group, name = key.split(".", 1)
            groups[group][name] = file.get_tensor(key)
    return Golden(config, dict(groups))


def assert_close(actual: Tensor, expected: Tensor, tol: float = 1e-5) -> None:
    """Agreement to ``tol`` of the expected tensor's largest absolute value."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    scale = expected.double().abs().max().clamp_min(1e-12)
    error = (actual.double() - expected.double()).abs().max() / scale
    assert error <= tol, f"relative error {error:.2e} > {tol:.0e}"
