"""How processes find each other."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

import utils.distributed.world
from utils.distributed.world import fresh_store


def start(store: dist.Store, delays: list[float]) -> list[dist.Store]:
    """The stores of processes that come after ``delays`` seconds, by rank."""
    stores: dict[int, dist.Store] = {}

    def come(rank: int, delay: float) -> None:
        time.sleep(delay)
        stores[rank] = fresh_store(store, rank, len(delays))

    threads = [threading.Thread(target=come, args=each) for each in enumerate(delays)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [stores[rank] for rank in range(len(delays))]


@pytest.mark.parametrize("delays", [[0.0, 0.0, 0.0], [0.0, 0.3, 0.1], [0.3, 0.0, 0.1]])
def test_processes_started_again_do_not_see_what_earlier_ones_left(delays: list[float]) -> None:
    shared = dist.HashStore()
    seen = set()
    for number in range(4):
        # One that says hello and is gone before it knows.
        shared.set("hello/1", "gone")
        stores = start(shared, delays if number % 2 else delays[::-1])
        for rank, store in enumerate(stores):
            assert not store.check([f"address/{rank}"])
            store.set(f"address/{rank}", str(number))
        for store in stores:
            assert {store.get(f"address/{rank}") for rank in range(3)} == {str(number).encode()}
        seen.add(shared.num_keys())
    assert len(seen) == 4


def test_a_process_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.distributed.world, "TIMEOUT", timedelta(seconds=0.2))
    with pytest.raises(RuntimeError, match="ranks .1. timed out"):
        fresh_store(dist.HashStore(), 0, 2)
