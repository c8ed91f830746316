"""The kernel of attention: the fastest one at the shapes of a run, or a named one.

Shapes: b batch, n tokens, h heads, e head width.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from multimae.specs.errors import UserError

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
AUTO = ("flash", "cudnn", "efficient")  # math, the slowest, may not fit in memory
Calls = Mapping[tuple[Size, Size], int]
"""Shapes (b, h, n, e) of queries and keys -> calls in a forward pass."""


class AttentionCalls(TorchFunctionMode):
    """Counts calls of attention, also on the device ``meta``."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self.counts: Counter[tuple[Size, Size]] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count and call ``func``."""
        if func is F.scaled_dot_product_attention:
            self.counts[args[0].shape, args[1].shape] += 1
        return func(*args, **(kwargs or {}))


def attention_seconds(
    name: str, calls: Calls, dtype: torch.dtype, device: torch.device
) -> float | None:
    """Time of a step's attention, forward and backward; ``None`` if the backend refuses a shape."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> float:
        begin = time.perf_counter()
        with sdpa_kernel(BACKENDS[name]):
            out = F.scaled_dot_product_attention(q, k, v)
        out.sum().backward()  # type: ignore[no-untyped-call]
        v.sum().item()  # waits for the device
        return time.perf_counter() - begin

    total = 0.0
    for (query, key), count in calls.items():
        qkv = [
            torch.randn(b, n, h, e, device=device, dtype=dtype).transpose(1, 2).requires_grad_()
            for b, h, n, e in (query, key, key)
        ]
        try:
            total += count * min(run(*qkv) for _ in range(4))  # the first one may compile
        except RuntimeError:  # refused, or out of memory
            return None
    return total


def choose_backend(
    wanted: str, seconds: Callable[[str], float | None], info: Callable[[str], None]
) -> str:
    """The fastest backend of those that run, for ``auto``; a named one, if it runs.

    Args:
        wanted: Value of ``--attention``.
        seconds: See :func:`attention_seconds`.
        info: Logs the choice.

    Returns:
        Its name, ``default`` if none runs.

    Raises:
        UserError: A named backend does not run.
    """
    times = {name: seconds(name) for name in (AUTO if wanted == "auto" else (wanted,))}
    found = {name: time for name, time in times.items() if time is not None}
    if wanted != "auto" and not found:
        raise UserError(
            f"--attention {wanted}: does not run on this GPU in this precision at this run's "
            "shapes; use auto or default"
        )
    chosen = min(found, key=found.__getitem__) if found else "default"
    shown = (f"{n} {'-' if t is None else f'{1e3 * t:.2f} ms'}" for n, t in times.items())
    info(f"attention: {chosen} (forward and backward of a batch: {', '.join(shown)})")
    return chosen


def prefer(name: str) -> AbstractContextManager[Any]:
    """Context of a step: ``name`` where it runs (few do in float32), elsewhere the others."""
    others = [backend for other, backend in BACKENDS.items() if other != name]
    return sdpa_kernel([BACKENDS[name], *others], set_priority=True)
