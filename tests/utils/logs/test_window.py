"""Means between log lines: over the updates in which a loss counts anything."""

from __future__ import annotations

import math

import pytest
import torch

from utils.distributed.world import World
from utils.logs.window import LogWindow

WORLD = World(0, 1, torch.device("cpu"))


def add(window: LogWindow, step: int, depth: float, has_depth: bool) -> None:
    values = {"loss": torch.tensor(2.0 + depth), "loss/depth": torch.tensor(depth)}
    window.add(step, values, {"loss/depth": torch.tensor(has_depth)})


def test_updates_without_a_modality_do_not_lower_its_mean() -> None:
    window = LogWindow()
    for step, (depth, has_depth) in enumerate([(0.0, False), (3.0, True), (1.0, True)]):
        add(window, step, depth, has_depth)
    assert window.read(WORLD) == pytest.approx({"loss": 10 / 3, "loss/depth": 2.0})
    add(window, 3, 5.0, True)
    assert window.read(WORLD)["loss/depth"] == 5.0  # a new window


def test_the_mean_of_no_updates_is_not_zero() -> None:
    window = LogWindow()
    add(window, 0, 0.0, False)
    values = window.read(WORLD)
    assert values["loss"] == 2.0 and math.isnan(values["loss/depth"])
    assert not window.bad_values(WORLD)


def test_a_checkpoint_keeps_which_updates_count() -> None:
    window, resumed = LogWindow(), LogWindow()
    add(window, 0, 0.0, False)
    resumed.load_state_dict(window.state_dict(WORLD), WORLD)
    add(resumed, 1, 3.0, True)
    assert resumed.read(WORLD) == {"loss": 3.5, "loss/depth": 3.0}


def test_checkpoints_of_older_versions_count_every_update() -> None:
    window, resumed = LogWindow(), LogWindow()
    add(window, 0, 1.0, True)
    state = {k: v for k, v in window.state_dict(WORLD).items() if k != "updates"}
    resumed.load_state_dict(state, WORLD)
    add(resumed, 1, 3.0, True)
    assert resumed.read(WORLD)["loss/depth"] == 2.0
