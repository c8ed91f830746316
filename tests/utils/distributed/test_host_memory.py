"""What a step frees is there for the next one."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from utils.distributed.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def step():
    return [torch.ones(2**24) for _ in range(2)], [torch.ones(2**20) for _ in range(16)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(4):
    before = faults()
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_pages_are_cleared_once() -> None:
    faults = {}
    for how in ("default", "keep"):
        run = [sys.executable, "-c", PROGRAM, how]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["keep"] < faults["default"] / 10
