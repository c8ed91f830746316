"""Entry and exit of a training script: signals, errors, exit codes, dead peers."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable

import torch.distributed as dist

from utils.distributed.signals import end_workers, stopping_at_once
from utils.logs.errors import RunError, UserError, print_error

# Messages of gloo, NCCL and the store when a peer has died.
_PEER_MESSAGES = (
    "connection closed by peer", "connection reset by peer", "broken pipe", "connection refused",
    "socket", "nccl", "gloo", "timed out",
)  # fmt: skip


def run_script(main: Callable[[], object]) -> None:
    """Run ``main`` as the last thing of a process.

    Exits with 0, with the code of a :class:`UserError`, or with 1.

    A process that fails because a peer failed prints one line, so that the cause appears once. It
    exits without cleaning up: destroying a process group with dead peers may block forever.
    """
    code = 0
    try:
        with stopping_at_once():
            main()
    except UserError as err:
        code = err.exit_code
        if not (err.everywhere and _rank()):
            print_error(err)
    except Exception as err:
        code = 1
        if is_peer_failure(err):
            print(f"rank {_rank()}: ends because another process has ended", file=sys.stderr)
        else:
            traceback.print_exc()
    if code:
        end_workers()
    if code and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    # Skip the final garbage collection over all loaded modules: one to two seconds.
    gc.freeze()
    if code:
        raise SystemExit(code)


def is_peer_failure(error: BaseException) -> bool:
    """Whether a collective failed because a peer died."""
    if not dist.is_initialized():
        return False
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _PEER_MESSAGES)


def worker_killed(error: BaseException) -> RunError | None:
    """Turn the error of a killed loader worker into a :class:`RunError`, else ``None``."""
    died = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    # Batches arrive through a socket, which may close before the worker is reported dead.
    if died or isinstance(error, ConnectionError | EOFError):
        return RunError(
            f"a loader process was killed ({error}). Most often memory ran out: lower "
            "--num_workers or --batch_size. Run the same command to resume from the last "
            "checkpoint."
        )
    return None


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
