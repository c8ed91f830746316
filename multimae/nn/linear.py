"""Linear layers, whose products take the faster of PyTorch's two CPU libraries.

PyTorch multiplies float32 matrices by MKL. With two threads of a processor without AVX-512 oneDNN,
which it has as well, is up to a fifth faster in the forward pass and in gradients of inputs, not in
those of weights. On Zen 3 a training step gains up to 15 %, where other work disturbs the cores;
alone on them both are alike (docs/PERFORMANCE.md). The same numbers up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
"""Whether the processor has no wider vectors, as far as PyTorch uses them."""
ONEDNN_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""What torch.compile calls for linear layers (not documented), or ``None`` without oneDNN."""


class Linear(nn.Linear):
    """``torch.nn.Linear``, its parameters and its results."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if AVX2 and torch.is_grad_enabled() and onednn_takes(x, self.weight):
            out: Tensor = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return out
        return F.linear(x, self.weight, self.bias)


def onednn_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether both are plain float32 tensors on a CPU that fit, and nobody follows the operators.

    Autocast, compilers, tracers, transforms of functions, shares of tensors and tensors without
    data get PyTorch's own layer, which they know.
    """
    return (
        ONEDNN_LINEAR is not None
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.layout == weight.layout == torch.strided
        and not x.is_nested
        and x.numel() > 0
        and x.shape[-1] == weight.shape[1]
    )


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` by oneDNN, without a graph: (..., in), (out, in) -> (..., out)."""
    out: Tensor = ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return onednn_linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _ = inputs
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        rows = upstream.reshape(-1, upstream.shape[-1])
        return (
            _Linear.apply(upstream, weight.t(), None) if wanted[0] else None,  # type: ignore[no-untyped-call]
            rows.t() @ x.reshape(-1, x.shape[-1]) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        moved = [] if dx is None else [F.linear(dx, weight)]
        moved += [] if dw is None else [F.linear(x, dw)]
        if db is not None:
            moved.append(db.expand(*x.shape[:-1], -1))
        return torch.stack(moved).sum(0)
