"""The processes of a run: rank, world size, device, collectives, flags they agree on."""

from __future__ import annotations

import gc
import itertools
import json
import os
import platform
import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from multimae.specs.errors import RunError, UserError
from utils.config.options import RuntimeOptions

TIMEOUT = timedelta(minutes=10)

HEARTBEAT_S, SILENCE_S = 5.0, 120.0
"""Of :meth:`World.once_per_machine`: seconds between signs of life, and without any."""
_calls = itertools.count()

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process in the run's process group.

    Attributes:
        rank: 0 .. size-1; rank 0 logs and saves.
        size: Number of processes.
        device: Device of this process.
        store: Key-value store of the group; ``None`` for a single process.
    """

    rank: int
    size: int
    device: torch.device
    store: Store | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process logs and saves."""
        return self.rank == 0

    def __str__(self) -> str:
        """Short name for logs."""
        return f"{self.size} x {self.device.type}"

    def sum(self, tensor: Tensor) -> Tensor:
        """All-reduce: the sum over processes."""
        if self.size == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def max(self, tensor: Tensor) -> Tensor:
        """All-reduce: the element-wise maximum over processes."""
        if self.size == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total, op=dist.ReduceOp.MAX)
        return total.to(tensor.device)

    def broadcast_from_main(self, fn: Callable[[], T]) -> T:
        """Call ``fn`` on rank 0 and broadcast its result.

        Raises:
            UserError: Raised by ``fn`` on rank 0; raised on every rank.
        """
        if self.size == 1:
            return fn()
        found: list[Any] = [None, None]
        if self.is_main:
            try:
                found[0] = fn()
            except UserError as err:
                found[1] = str(err)
        dist.broadcast_object_list(found, device=self.device)
        value, problem = found
        if problem is not None:
            error = UserError(problem)
            error.everywhere = True
            raise error
        return value  # type: ignore[no-any-return]

    def once_per_machine(self, fn: Callable[[], str]) -> str:
        """Call ``fn`` on one process of every machine and send its result to the others there.

        Collective. There is no time limit while the process that calls it is alive.

        Raises:
            UserError: Raised by ``fn``; raised on every process of the machine.
            RunError: The process that calls ``fn`` no longer responds.
        """
        if self.store is None:
            return fn()
        name = f"machine/{_machine()}/{next(_calls)}"
        if self.store.add(f"{name}/first", 1) > 1:
            return _wait_for_peer(self.store, name)
        done, result = threading.Event(), json.dumps([None, "another process has failed"])
        thread = threading.Thread(target=_beat, args=(self.store, name, done), daemon=True)
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
            self.store.set(f"{name}/result", result)
        return value

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


ALONE = World(0, 1, torch.device("cpu"))
"""A single process."""


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


class Control(NamedTuple):
    """Flags of one process, or reduced over all.

    Attributes:
        stop: A signal asked to stop.
        save: A checkpoint is due by the clock.
        failed: Rank 0 could not save.
        empty: No sample of a batch could be read.
        bad_samples: Samples that could not be read.
    """

    stop: bool = False
    save: bool = False
    failed: bool = False
    empty: bool = False
    bad_samples: int = 0


class ControlGroup:
    """All-reduces :class:`Control` over gloo on the CPU, without synchronising the accelerator."""

    def __init__(self, world: World) -> None:
        """Create the group (collective)."""
        self.world = world
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None

    def all_reduce(self, mine: Control) -> Control:
        """Reduce over processes: any of the flags, the sum of bad samples."""
        if self._group is None:
            return mine
        row = torch.tensor([*map(int, mine)], dtype=torch.int64)
        dist.all_reduce(row, group=self._group)
        *flags, bad = row.tolist()
        return Control(*map(bool, flags))._replace(bad_samples=bad)

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """The items of all processes, by rank, on all of them."""
        if self._group is None:
            return list(items)
        parts: list[Sequence[Any]] = [() for _ in range(self.world.size)]
        dist.all_gather_object(parts, list(items), group=self._group)
        return [item for part in parts for item in part]


def init_world(options: RuntimeOptions) -> World:
    """Set up the process, and join the group if a launcher started several.

    torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK) decides, else srun's (SLURM_PROCID);
    ``--dist_on_itp`` reads Open MPI's. Backend: nccl on CUDA, gloo elsewhere.

    Raises:
        UserError: The device is not available.
    """
    if "RANK" not in os.environ and not options.dist_on_itp:
        os.environ.update(slurm_environment(os.environ))
    prefix = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    names = prefix if options.dist_on_itp else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not options.show_user_warnings:
        warnings.filterwarnings("ignore", category=UserWarning)
    rank, size, local = (int(os.environ.get(n, d)) for n, d in zip(names, "010", strict=True))
    device = _device(options.device, local, size)
    if options.deterministic:
        # cuBLAS reads it when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    if options.data_cache_gb is not None:
        os.environ["MULTIMAE_CACHE_GB"] = str(options.data_cache_gb)  # for loader workers, too
    store = None
    if size > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        address = rendezvous(options.dist_url, rank, size, timeout=TIMEOUT)
        store = fresh_store(next(iter(address))[0], rank, size)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=TIMEOUT,
        )
    return World(rank, size, device, store)


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


def fresh_store(store: Store, rank: int, size: int) -> Store:
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
    deadline = time.monotonic() + TIMEOUT.total_seconds()
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


def shutdown() -> None:
    """Leave the process group once its DDP modules are garbage-collected.

    A DDP module that outlives the group destroys it while holding the GIL, which gloo's threads
    may need: a rare deadlock at exit.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def _device(name: str, local_rank: int, size: int) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "--device cuda: this PyTorch sees no GPU. Check the driver with nvidia-smi, "
                "or train on the CPU with --device cpu."
            )
        if size > 1:
            return torch.device("cuda", local_rank)
    return device
