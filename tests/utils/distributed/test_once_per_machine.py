"""One process of a machine works, the others get its result."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from multimae.specs.errors import RunError, UserError
from utils.distributed import launch as module
from utils.distributed.world import ALONE, World


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> list[World]:
    store = dist.HashStore()
    monkeypatch.setattr(module, "_calls", iter([0] * 3))  # threads share the counter
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(module, "SILENCE_S", 0.4)
    return [World(rank, 3, torch.device("cpu"), store) for rank in range(3)]


def test_one_calls_and_all_get_the_result_however_long_it_takes(worlds: list[World]) -> None:
    called = []

    def slow() -> str:
        called.append(threading.get_ident())
        time.sleep(1.0)  # longer than the silence allowed
        return "here"

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda world: world.once_per_machine(slow), worlds))
    assert found == ["here"] * 3 and len(called) == 1
    assert ALONE.once_per_machine(lambda: "alone") == "alone"


def test_an_error_reaches_all(worlds: list[World]) -> None:
    def fail() -> str:
        raise UserError("no folder x")

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(world.once_per_machine, fail) for world in worlds]
    assert [str(run.exception()) for run in runs] == ["no folder x"] * 3


def test_a_silent_process_is_reported(worlds: list[World]) -> None:
    store = worlds[0].store
    assert store is not None
    store.add(f"machine/{module._machine()}/0/first", 1)  # a process that dies at once
    with pytest.raises(RunError, match="not responded"):
        worlds[1].once_per_machine(lambda: "")
