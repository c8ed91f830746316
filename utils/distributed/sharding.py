"""FSDP2: shard a model over the processes, and gather its full weights for files and evaluation.

Every process holds a shard of each parameter, its gradient and its optimiser state. A block's
parameters are gathered for its forward and backward pass. Parameter names are unchanged, and
parameters are ``DTensor``s.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae.nn.network import MultiModalTransformer
from multimae.specs.errors import UserError
from utils.distributed.world import World
from utils.tasks.base import Task

# torch.distributed.fsdp and .tensor are imported where they are used: half a second that runs
# without shares should not pay.
if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class FullModelBuilder:
    """Builds full models from a sharded one, for evaluation."""

    def __init__(self, model: nn.Module, world: World) -> None:
        """Copy the structure of ``model`` to the meta device, before it is sharded."""
        self.world = world
        self._empty = copy.deepcopy(model).to("meta")

    def build(self, sharded: nn.Module) -> nn.Module:
        """Gather the weights of ``sharded`` into a plain model on every process (collective)."""
        state = {name: _full(value) for name, value in sharded.state_dict().items()}
        model = copy.deepcopy(self._empty)
        model.load_state_dict(state, assign=True)
        return model.requires_grad_(False)


def shard(
    task: Task,
    averages: Iterable[nn.Module],
    world: World,
    dtype: torch.dtype | None,
    compiled: Mapping[str, Any] | None = None,
) -> FullModelBuilder:
    """Shard ``task`` over two or more processes.

    Each transformer block and output adapter is one FSDP unit, gathered in the autocast dtype
    (adapters in ``task.fp32_output_adapters`` in float32). The rest (tokens, patch projections,
    balancer) is small and gathered in float32. Gradients are reduced in float32.

    Args:
        task: Changed in place. Its parameters are replaced: build the optimiser afterwards.
        averages: Running averages of its model, sharded alike.
        world: The processes.
        dtype: Autocast type of the run; ``None`` is float32.
        compiled: Options of :func:`torch.compile` for blocks and output adapters; ``None`` or
            empty: not compiled.

    Returns:
        A builder of full models.

    Raises:
        UserError: A device that FSDP does not run on.
    """
    if world.device.type not in ("cpu", "cuda"):
        raise UserError(f"--parallel fsdp: runs on cuda and cpu, not on {world.device.type}")
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(world.device.type, (world.size,))
    full_model_builder = FullModelBuilder(task.model, world)
    for model in averages:
        _shard(model, cast(MultiModalTransformer, model), mesh, None)
    if compiled:
        from utils.training.compilation import compile_parts

        compile_parts(task.model, **compiled)
    _shard(task, cast(MultiModalTransformer, task.model), mesh, dtype, task.fp32_output_adapters)
    return full_model_builder


def _shard(
    root: nn.Module,
    model: MultiModalTransformer,
    mesh: DeviceMesh,
    dtype: torch.dtype | None,
    in_float32: Iterable[str] = (),
) -> None:
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    # Autocast decides about activations, as everywhere: inputs of blocks are left as they are.
    full = MixedPrecisionPolicy(cast_forward_inputs=False)
    low = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    parts = {str(i): block for i, block in enumerate(model.encoder)}
    for name, part in [*parts.items(), *model.output_adapters.items()]:
        in_full_precision = dtype is None or name in in_float32
        if not any(True for _ in part.parameters()):
            continue
        fully_shard(part, mesh=mesh, mp_policy=full if in_full_precision else low)
        if not in_full_precision:
            _norms_in_float32(part)
        if hasattr(part, "forward_patches"):
            register_fsdp_forward_method(part, "forward_patches")
    fully_shard(root, mesh=mesh, mp_policy=full)
    for module in root.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_load_state_dict_pre_hook(_shard_loaded_state)  # type: ignore[no-untyped-call]


def set_gradient_sync(task: nn.Module, *, on: bool) -> None:
    """Reduce gradients in the next backward pass of a sharded task, or only accumulate them."""
    from torch.distributed.fsdp import FSDPModule

    cast(FSDPModule, task).set_requires_gradient_sync(on)


def gather_full_state(value: Any, world: World) -> Any:
    """Replace the sharded tensors of a state by full CPU tensors (collective).

    Gathers one tensor at a time. Ranks other than 0 get empty tensors.
    """
    if isinstance(value, Tensor) and hasattr(value, "full_tensor"):
        full = _full(value)
        return full.cpu() if world.is_main else torch.zeros(0)
    if isinstance(value, Mapping):
        return {key: gather_full_state(item, world) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [gather_full_state(item, world) for item in value]
    return value


def shard_optimizer_state(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Shard a full optimiser state: every tensor shaped like its parameter."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    names = [name for group in state["param_groups"] for name in group["params"]]
    owner = dict(zip(names, params, strict=False))
    shares = {
        name: {key: _shard_like(value, owner.get(name)) for key, value in values.items()}
        for name, values in state["state"].items()
    }
    return {**state, "state": shares}


def _shard_loaded_state(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Shard full weights before a module loads them (a load_state_dict pre-hook)."""
    for name, param in module.named_parameters(recurse=False):
        if prefix + name in state_dict:
            state_dict[prefix + name] = _shard_like(state_dict[prefix + name], param)


def _shard_like(value: Any, param: Tensor | None) -> Any:
    """Shard a full tensor like ``param`` if their shapes agree."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if (
        not isinstance(param, DTensor)
        or not isinstance(value, Tensor)
        or isinstance(value, DTensor)
        or value.shape != param.shape
    ):
        return value
    return distribute_tensor(value, param.device_mesh, param.placements, src_data_rank=None)


def _full(value: Any) -> Any:
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def _norms_in_float32(module: nn.Module) -> None:
    """Compute layer norms in float32 whatever their weights come in.

    Autocast does so on GPUs; on CPUs it leaves them alone, and refuses weights of fewer bits.
    """
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.forward = MethodType(_layer_norm, norm)  # type: ignore[method-assign]


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    weight, bias = (None if p is None else p.float() for p in (norm.weight, norm.bias))
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps)
