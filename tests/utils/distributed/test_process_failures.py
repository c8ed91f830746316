"""Errors of the machine: each names its remedy."""

from __future__ import annotations

import pytest
import torch

from utils.distributed.process_failures import as_run_error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 2147483648 bytes"),
    ],
)
def test_memory_that_ran_out_names_what_saves_it(error: Exception) -> None:
    explained = str(as_run_error(error))
    for fact in (str(error).splitlines()[0], "--update_freq", "--grad_checkpointing", "plan_run"):
        assert fact in explained
    assert "More lines" not in explained


def test_other_errors_of_a_step_keep_their_traceback() -> None:
    assert as_run_error(RuntimeError("shapes differ")) is None
