"""One torch thread per test process (tests run in parallel), and a model size for tests."""

from __future__ import annotations

import torch

from multimae.sizes import SIZES

torch.set_num_threads(1)
SIZES["nano"] = {"dim_tokens": 64, "depth": 2, "num_heads": 4}
