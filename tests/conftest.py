"""Shared set-up: one torch thread per test process (tests run in parallel)."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
