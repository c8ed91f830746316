"""What a fine-tuned model predicts for every sample of a set, however the set is shared out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.data.batches import Batch
from utils.data.samplers import EvalBatchSampler
from utils.tasks.finetuning import FinetuneTask
from utils.training.precision import Precision


def predictions(
    task: FinetuneTask,
    model: nn.Module,
    loader: DataLoader[Any],
    precision: Precision,
    device: torch.device,
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Batches of this process's share on ``device``, and every head's float32 output for them.

    Kernels are chosen by the size of a batch, and a sample's last digits with them. A smaller
    batch is therefore filled up with copies, whose outputs are dropped: what is predicted for a
    sample does not depend on the number of processes.
    """
    rows = (
        loader.batch_sampler.max_batch_size
        if isinstance(loader.batch_sampler, EvalBatchSampler)
        else 0
    )
    for loaded in loader:
        batch: Batch = loaded.to(device)
        x = {name: _filled_up(value, rows) for name, value in task.prepare(batch).items()}
        with precision.autocast():
            outputs = task.predict(x, model)
        yield batch, {name: y[: len(batch)].float() for name, y in outputs.items()}


def _filled_up(x: Tensor, rows: int) -> Tensor:
    """``x`` and as many copies of its last sample as are missing in ``rows``."""
    missing = max(0, rows - len(x))
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x
