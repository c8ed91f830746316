"""Errors that another process caused: a peer that ended, a loader worker that was killed."""

from __future__ import annotations

import torch
import torch.distributed as dist

from multimae.specs.commands import drop_broken_pipe
from multimae.specs.errors import RunError

# Messages of gloo, NCCL and the store when a peer has died.
_PEER_MESSAGES = (
    "connection closed by peer", "connection reset by peer", "broken pipe", "connection refused",
    "socket", "nccl", "gloo", "timed out",
)  # fmt: skip
_CPU_MEMORY = "DefaultCPUAllocator"  # of torch's message


def is_peer_failure(error: BaseException) -> bool:
    """Whether a collective failed because a peer died."""
    if not dist.is_initialized():
        return False
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _PEER_MESSAGES)


def as_run_error(error: Exception) -> RunError | None:
    """Turn what the machine does to a run into an error that says what to do, else ``None``."""
    if isinstance(error, BrokenPipeError) and drop_broken_pipe(failed=True):
        return RunError(
            "the reader of the output, such as `head`, has ended. Run the same command to resume "
            "from the last checkpoint."
        )
    if isinstance(error, torch.OutOfMemoryError) or _CPU_MEMORY in str(error):
        return RunError(
            f"memory ran out ({str(error).splitlines()[0]}). Halve --batch_size and double "
            "--update_freq, which keeps the global batch; add --grad_checkpointing, or, on several "
            "GPUs, --parallel fsdp. tools/plan_run.py measures what fits. The changed command "
            "resumes from the last checkpoint."
        )
    died = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    # Batches arrive through a socket, which may close before the worker is reported dead.
    if died or isinstance(error, ConnectionError | EOFError):
        return RunError(
            f"a loader process was killed ({error}). Most often memory ran out: lower "
            "--num_workers or --batch_size. Run the same command to resume from the last "
            "checkpoint."
        )
    if isinstance(error, OSError):
        return RunError(
            f"cannot write {error.filename or 'the output'}: {error.strerror or error}. Make room, "
            "and run the same command to resume from the last checkpoint."
        )
    return None
