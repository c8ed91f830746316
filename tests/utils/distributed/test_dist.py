"""Rendezvous of ranks."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from utils.distributed.launch import fresh_store, slurm_environment


def start(store: dist.Store, delays: list[float]) -> list[dist.Store]:
    """Stores of ranks that start after ``delays`` seconds."""
    stores: dict[int, dist.Store] = {}

    def come(rank: int, delay: float) -> None:
        time.sleep(delay)
        stores[rank] = fresh_store(store, rank, len(delays), timedelta(minutes=1))

    threads = [threading.Thread(target=come, args=each) for each in enumerate(delays)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [stores[rank] for rank in range(len(delays))]


@pytest.mark.parametrize("delays", [[0.0, 0.0, 0.0], [0.0, 0.3, 0.1], [0.3, 0.0, 0.1]])
def test_restarted_ranks_ignore_stale_keys(delays: list[float]) -> None:
    shared = dist.HashStore()
    seen = set()
    for number in range(4):
        # A rank of an earlier start that registered and died.
        shared.set("hello/1", "gone")
        stores = start(shared, delays if number % 2 else delays[::-1])
        for rank, store in enumerate(stores):
            assert not store.check([f"address/{rank}"])
            store.set(f"address/{rank}", str(number))
        for store in stores:
            assert {store.get(f"address/{rank}") for rank in range(3)} == {str(number).encode()}
        seen.add(shared.num_keys())
    assert len(seen) == 4


def test_missing_rank_times_out() -> None:
    with pytest.raises(RuntimeError, match="ranks .1. timed out"):
        fresh_store(dist.HashStore(), 0, 2, timedelta(seconds=0.2))


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[017-019,3]", "gpu017"),
        ("a,b", "a"),
        ("n1-x[2,4].local,b", "n1-x2.local"),
        ("", "10.0.0.9"),
    ],
)
def test_srun_needs_no_torchrun(nodes: str, host: str) -> None:
    env = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"}
    env |= {"SLURM_NODELIST": nodes, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9", "SLURM_STEP_ID": "0"}
    assert slurm_environment(env) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": host,
        "MASTER_PORT": "23456",
    }
    own = slurm_environment({**env, "MASTER_ADDR": "mine", "MASTER_PORT": "29"})
    assert (own["MASTER_ADDR"], own["MASTER_PORT"]) == ("mine", "29")
    assert slurm_environment({**env, "SLURM_NTASKS": "1"}) == slurm_environment({}) == {}
