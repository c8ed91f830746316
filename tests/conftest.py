"""One torch thread per test process (tests run in parallel), and a model size for tests."""

from __future__ import annotations

from functools import partial

import torch

from multimae.build import BUILDERS
from multimae.multimae import MultiMAE, MultiViT

torch.set_num_threads(1)
BUILDERS["pretrain_multimae_nano"] = partial(MultiMAE, dim_tokens=64, depth=2, num_heads=4)
BUILDERS["multivit_nano"] = partial(MultiViT, dim_tokens=64, depth=2, num_heads=4)
