"""Start of a run of several processes, and calls that one process per machine makes for all."""

from __future__ import annotations

import itertools
import json
import platform
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from multimae.specs.errors import RunError, UserError

HEARTBEAT_S, SILENCE_S = 5.0, 120.0
"""Of :func:`call_once_per_machine`: seconds between signs of life, and without any."""
_calls = itertools.count()


def join_group(url: str, rank: int, size: int, device: torch.device, timeout: timedelta) -> Store:
    """Join the process group of a run: nccl on CUDA, gloo elsewhere.

    Returns:
        The group's key-value store.
    """
    address = rendezvous(url, rank, size, timeout=timeout)
    store = fresh_store(next(iter(address))[0], rank, size, timeout)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    return store


def slurm_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Torchrun's variables from those of a task that srun started; empty elsewhere.

    The first host is MASTER_ADDR, a port derived from the job id MASTER_PORT, unless they are set.
    """
    size = env.get("SLURM_NTASKS", "1")
    if "SLURM_PROCID" not in env or "SLURM_STEP_ID" not in env or int(size) < 2:
        return {}  # one process, or a batch script, which has the job's variables, too
    host = env.get("MASTER_ADDR") or _first_host(env.get("SLURM_NODELIST", ""))
    port = 20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": host or env.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"),
        "MASTER_PORT": env.get("MASTER_PORT", str(port)),
    }


def _first_host(nodes: str) -> str:
    """First of ``a[01-04,7],b``: ``a01``."""
    found = re.match(r"([^,\[]*)(?:\[([^],-]*)[^]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in found.groups()) if found else ""


def fresh_store(store: Store, rank: int, size: int, timeout: timedelta) -> Store:
    """Namespace a rendezvous store for this start of the run.

    torchrun keeps its store across ``--max_restarts``, so restarted processes would read the
    addresses of dead ones. Rank 0 picks a prefix and sends it to every rank that registers, until
    each live rank has acknowledged it.

    Raises:
        RuntimeError: A rank did not register in time.
    """
    own = uuid4().hex
    if rank:
        store.set(f"hello/{rank}", own)
        session = store.get(f"session/{own}").decode()
        store.set(f"known/{session}/{rank}", "")
        return PrefixStore(session, store)
    deadline = time.monotonic() + timeout.total_seconds()
    missing = set(range(1, size))
    while missing:
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {sorted(missing)} timed out before joining")
        for other in sorted(missing):
            if store.check([f"hello/{other}"]):
                store.set(f"session/{store.get(f'hello/{other}').decode()}", own)
        missing = {other for other in missing if not store.check([f"known/{own}/{other}"])}
        time.sleep(0.01 if missing else 0)
    return PrefixStore(own, store)


def call_once_per_machine(store: Store, fn: Callable[[], str]) -> str:
    """See :meth:`utils.distributed.world.World.once_per_machine`."""
    name = f"machine/{_machine()}/{next(_calls)}"
    if store.add(f"{name}/first", 1) > 1:
        return _wait_for_peer(store, name)
    done, result = threading.Event(), json.dumps([None, "another process has failed"])
    thread = threading.Thread(target=_beat, args=(store, name, done), daemon=True)
    thread.start()
    try:
        value = fn()
        result = json.dumps([value, None])
    except UserError as err:
        result = json.dumps([None, str(err)])
        raise
    finally:
        done.set()
        thread.join()
        store.set(f"{name}/result", result)
    return value


def _machine() -> str:
    """Name of this machine that no other has."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return platform.node() + (boot.read_text().strip() if boot.is_file() else "")


def _beat(store: Store, name: str, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_S):
        store.add(f"{name}/beat", 1)


def _wait_for_peer(store: Store, name: str) -> str:
    """Result of the process of this machine that calls the function of a collective."""
    beat, heard = -1, time.monotonic()
    while not store.check([f"{name}/result"]):
        now = store.add(f"{name}/beat", 0)
        if now != beat:
            beat, heard = now, time.monotonic()
        elif time.monotonic() - heard > SILENCE_S:
            raise RunError(
                f"the process of this machine ({platform.node()}) that lists the data folders has "
                f"not responded for {SILENCE_S:.0f} s. See its messages above; a folder on a file "
                "system that hangs is one cause."
            )
        time.sleep(0.05)
    value, problem = json.loads(store.get(f"{name}/result"))
    if problem is not None:
        error = UserError(problem)
        error.everywhere = True
        raise error
    return str(value)
