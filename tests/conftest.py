"""One torch thread per test process (tests run in parallel), a model size, the order of tests."""

from __future__ import annotations

import pytest
import torch

from multimae.specs.sizes import SIZES

torch.set_num_threads(1)
SIZES["nano"] = {"dim_tokens": 64, "depth": 2, "num_heads": 4}

# Their tests start training processes and wait for them. They come first, so that no process of
# pytest is left alone with them at the end.
LONG = ("torture", "fsdp", "export", "finetuning_ranks", "pretraining", "app", "notebook")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)
