"""How a training script begins and ends: signals, errors, exit codes, peers that are gone."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable

import torch.distributed as dist

from utils.distributed.signals import end_workers, stopping_at_once
from utils.logs.errors import RunError, UserError, print_error

# What gloo, NCCL and the store say when a process of the run is gone.
_LOST = (
    "connection closed by peer", "connection reset by peer", "broken pipe", "connection refused",
    "socket", "nccl", "gloo", "timed out",
)  # fmt: skip


def run_script(main: Callable[[], object]) -> None:
    """Run ``main`` as the last thing of a process.

    Exits with 0, with the code of a :class:`UserError`, or with 1.

    Of several processes those that end because another has failed say so in one line, so that the
    cause is told once. They leave without tidying up: a process group whose peers are gone may wait
    for them for ever.
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
    # The interpreter would look through all that it has loaded for garbage: a second or two.
    gc.freeze()
    if code:
        raise SystemExit(code)


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error of a collective says that another process is gone."""
    if not dist.is_initialized():
        return False
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _LOST)


def worker_killed(error: BaseException) -> RunError | None:
    """The error of a run whose loader lost a worker, if ``error`` says that."""
    died = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    # Batches are handed over through a socket, whose other end may be gone first.
    if died or isinstance(error, ConnectionError | EOFError):
        return RunError(
            f"a loader process was killed ({error}). Most often memory ran out: lower "
            "--num_workers or --batch_size. Run the same command to go on from the last checkpoint."
        )
    return None


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
