"""Linear layers by oneDNN are those of PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, hessian, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from multimae.nn import linear
from multimae.nn.linear import ONEDNN_LINEAR, Linear
from tools.bench.counting import Products, flops_of, saved_bytes

SHAPES = [(5, 7), (2, 3, 7), (2, 2, 3, 7), (7,), (1, 7), (0, 7)]


class Called(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func.overloadpacket is ONEDNN_LINEAR
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _narrow_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without AVX-512."""
    monkeypatch.setattr(linear, "AVX2", True)


def gradients(layer: nn.Linear, x: Tensor, upstream: Tensor) -> list[Tensor | None]:
    layer.zero_grad()
    x = x.detach().requires_grad_()
    layer(x).backward(upstream)
    return [x.grad, *(p.grad for p in layer.parameters())]


def pair(**options: Any) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(0)
    ours, theirs = Linear(7, 11, **options), nn.Linear(7, 11, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients(shape: tuple[int, ...], bias: bool) -> None:
    ours, theirs = pair(bias=bias)
    x, upstream = torch.randn(shape), torch.randn(*shape[:-1], 11)
    torch.testing.assert_close(ours(x), theirs(x))
    found, right = gradients(ours, x, upstream), gradients(theirs, x, upstream)
    torch.testing.assert_close(found, right)


def test_views_and_constants() -> None:
    ours, theirs = pair()
    x = torch.randn(7, 4, 3).permute(2, 1, 0)
    upstream = torch.randn(11).expand(3, 4, 11)
    torch.testing.assert_close(gradients(ours, x, upstream), gradients(theirs, x, upstream))


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
def test_only_what_is_trained_has_gradients(frozen: str) -> None:
    ours, theirs = pair()
    for layer in (ours, theirs):
        for name, p in layer.named_parameters():
            p.requires_grad_(frozen not in (name, "both"))
    x, upstream = torch.randn(2, 3, 7), torch.randn(2, 3, 11)
    torch.testing.assert_close(gradients(ours, x, upstream), gradients(theirs, x, upstream))


def test_where_onednn_multiplies() -> None:
    """Forward and for the input's gradient, in float32 training alone."""
    layer, x = Linear(7, 11), torch.randn(3, 7, requires_grad=True)
    with Called() as called:
        layer(x).sum().backward()
    assert called.times == 2
    with Called() as called:
        with torch.no_grad():
            layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        layer.double()(x.double())
        nn.Linear(7, 11)(x)
    assert called.times == 0


def test_wide_vectors_multiply_as_pytorch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "AVX2", False)
    with Called() as called:
        Linear(7, 11)(torch.randn(3, 7))
    assert called.times == 0


def test_nothing_is_kept_that_no_gradient_needs() -> None:
    def kept(layer: nn.Linear, x: Tensor) -> int:
        with saved_bytes(layer.parameters()) as saved:
            layer(x)
        return saved.peak

    x = torch.randn(3, 7)
    for trained in (False, True):
        for layer in pair():
            layer.weight.requires_grad_(trained)
            assert kept(layer, x) == kept(layer, x.clone().requires_grad_()) == 84 * trained


def test_counters_know_it() -> None:
    """The bench's; FLOPs of a gradient are those of the forward pass, twice."""
    found = []
    for layer in pair():
        x = torch.randn(2, 3, 7, requires_grad=True)
        with Products() as products:
            flops = flops_of(lambda: layer(x).sum().backward())  # noqa: B023
        found.append((flops, products.found))
    assert found[0] == found[1]
    assert found[0][0] == 3 * 2 * 6 * 7 * 11


def test_other_derivatives() -> None:
    """Of samples, forward, and second ones."""
    x = torch.randn(5, 7)
    found = []
    for layer in pair():
        parameters = dict(layer.named_parameters())

        def loss(p: dict[str, Tensor], x: Tensor, layer: nn.Linear = layer) -> Tensor:
            return functional_call(layer, p, (x,)).square().sum()

        y = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(parameters, y), y, create_graph=True)
        first.square().sum().backward()
        with forward_ad.dual_level():
            moved = {k: forward_ad.make_dual(p, p.detach().sin()) for k, p in parameters.items()}
            forward = [loss(p, forward_ad.make_dual(x, x.cos())) for p in (moved, parameters)]
            forward.append(loss(moved, x))
            tangents = [forward_ad.unpack_dual(value).tangent for value in forward]
        found.append(
            [
                *(y.grad, layer.weight.grad, *tangents),
                vmap(grad(loss), in_dims=(None, 0))(parameters, x),
                hessian(partial(loss, parameters))(x[0]),
                functionalize(layer)(x),
            ]
        )
    torch.testing.assert_close(found[0], found[1])


def test_other_tensors_get_pytorchs_layer() -> None:
    layer = Linear(7, 11)
    nested = torch.nested.nested_tensor([torch.randn(2, 7), torch.randn(3, 7)])
    with Called() as called:
        assert layer(nested).is_nested
        assert layer.to_empty(device="meta")(torch.empty(3, 7, device="meta")).shape == (3, 11)
    assert called.times == 0
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linear(7, 11)(torch.randn(3, 5))


def test_a_compiler_sees_pytorchs_layer() -> None:
    layer, x, seen = Linear(7, 11), torch.randn(3, 7), []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(graph.print_readable(print_output=False))
        return graph

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), F.linear(x, layer.weight, layer.bias))
    assert len(seen) == 1 and "linear" in seen[0] and "autograd_function" not in seen[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tracer_sees_pytorchs_layer() -> None:
    layer, x = Linear(7, 11), torch.randn(3, 7)
    traced = torch.jit.trace(layer, (x,))
    assert "aten::linear" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), layer(x))
