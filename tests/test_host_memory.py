"""What a step frees is there for the next one."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from utils.host_memory import keep_freed_memory

for keep in sys.argv[1:]:
    assert keep_freed_memory(keep == "keep")

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
    for how in ((), ("keep",), ("keep", "give back")):
        run = [sys.executable, "-c", PROGRAM, *how]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["keep",] < faults[()] / 10
    assert faults["keep", "give back"] > faults[()] / 2
