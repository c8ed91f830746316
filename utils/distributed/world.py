"""The processes of a run: rank, world size, device, collectives, flags they agree on."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from multimae.specs.errors import UserError
from utils.config.options import RuntimeOptions

TIMEOUT = timedelta(minutes=10)

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
        from utils.distributed.launch import call_once_per_machine

        return call_once_per_machine(self.store, fn)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


ALONE = World(0, 1, torch.device("cpu"))
"""A single process."""


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
    if "RANK" not in os.environ and "SLURM_PROCID" in os.environ and not options.dist_on_itp:
        from utils.distributed.launch import slurm_environment

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
        from utils.distributed.launch import join_group

        store = join_group(options.dist_url, rank, size, device, TIMEOUT)
    return World(rank, size, device, store)


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
