"""What a step does, counted while it runs: waits for the device, matrix products, bytes."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten
# Their results, or the shapes of their results, are needed on the host.
_WAITING = {
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten.equal,
    _aten.is_nonzero,
    _aten._unique2,
    _aten.unique_dim,
    _aten.bincount,
    _aten.repeat_interleave,
}


class HostSyncs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that wait for the device, on whatever device the step runs.

    Attributes:
        found: Operator -> times.
    """

    def __init__(self) -> None:
        """Nothing seen."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, and note it if it waits."""
        packet: Any = getattr(func, "overloadpacket", None)
        if packet in _WAITING or (packet in (_aten.index, _aten.index_put_) and _by_mask(args)):
            self.found[str(packet)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.found.values())


def _by_mask(args: tuple[Any, ...]) -> bool:
    """Whether an index is a mask: the number of its True values gives the result's shape."""
    indices = [i for i in tree_leaves(args[1]) if isinstance(i, Tensor)]
    return any(i.dtype in (torch.bool, torch.uint8) for i in indices)


@dataclass(frozen=True)
class Product:
    """A matrix product (b, m, k) x (b, k, n); b = 1 for one without a batch."""

    b: int
    m: int
    k: int
    n: int
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.b * self.m * self.k * self.n


# Matrix products, and which argument is the first factor; the second one follows.
_FACTORS = {_aten.mm: 0, _aten.bmm: 0, _aten.addmm: 1, _aten.baddbmm: 1}


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the shapes of all matrix products.

    Attributes:
        found: Product -> times.
    """

    def __init__(self) -> None:
        """Nothing seen."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[Product] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, and note it if it is a product."""
        packet: Any = getattr(func, "overloadpacket", None)
        first = _FACTORS.get(packet)
        if first is not None:
            a, b = args[first : first + 2]
            batch = len(a) if a.ndim == 3 else 1
            self.found[Product(batch, a.shape[-2], a.shape[-1], b.shape[-1], a.dtype)] += 1
        return func(*args, **(kwargs or {}))


@dataclass
class Bytes:
    """Bytes of tensors."""

    peak: int = 0
    now: int = 0
    _alive: dict[int, int] = field(default_factory=dict)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory of tensors made while it is on, on any device."""

    def __init__(self) -> None:
        """Nothing made yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = Bytes()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, and follow the memory of what it returns."""
        given = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _key(tensor) not in given:
                self._follow(tensor)
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage, key, counts = tensor.untyped_storage(), _key(tensor), self.bytes
        if key in counts._alive:
            return
        counts._alive[key] = storage.nbytes()
        counts.now += storage.nbytes()
        counts.peak = max(counts.peak, counts.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.bytes.now -= self.bytes._alive.pop(key, 0)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    (b, h, n, e), m = q, k[2]
    return 4 * int(b * h * n * m * e)


def _attention_backward_flops(_: Any, q: Any, k: Any, *__: Any, **___: Any) -> int:
    return 2 * _attention_flops(q, k, k)  # weights computed again are no work of the model


_CPU_KERNELS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def flops_of(work: Callable[[], object]) -> int:
    """Floating-point operations of ``work``, by torch's counter (matrix products, convolutions)."""
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_KERNELS)
    with counter:
        work()
    return int(counter.get_total_flops())


@contextmanager
def saved_bytes(parameters: Iterable[Tensor]) -> Iterator[Bytes]:
    """Bytes that are kept for the backward pass, each storage once; ``parameters`` do not count."""
    counts, weights = Bytes(), {_key(p) for p in parameters}

    def pack(tensor: Tensor) -> Tensor:
        if _key(tensor) not in counts._alive.keys() | weights:
            counts._alive[_key(tensor)] = tensor.untyped_storage().nbytes()
            counts.now = counts.peak = sum(counts._alive.values())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counts
