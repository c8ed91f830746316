"""A model shared out over the processes of a run (FSDP2), and its whole weights for files.

Every process holds its share of each parameter, of its gradient and of the optimiser's state. The
parameters of a block are gathered for its forward and its backward pass. Names stay as they are;
a parameter is a ``DTensor``, of which :func:`whole` and :class:`Blueprint` make plain ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from multimae.nn.network import MultiModalTransformer
from utils.config.options import RuntimeOptions
from utils.distributed.world import World
from utils.logs.errors import UserError
from utils.tasks.base import Task
from utils.training.precision import Precision

# torch.distributed.fsdp and .tensor are imported where they are used: half a second that runs
# without shares should not pay.
if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Blueprint:
    """A sharded model's structure, from which whole ones are made to be scored."""

    def __init__(self, model: nn.Module, world: World) -> None:
        """Note the structure of ``model``, before it is sharded."""
        self.world = world
        self._empty = copy.deepcopy(model).to("meta")

    def fill(self, sharded: nn.Module) -> nn.Module:
        """A plain model with the whole weights of ``sharded``, on every process; all call it.

        Buffers are those of rank 0, as in its files.
        """
        state = {name: _full(value) for name, value in sharded.state_dict().items()}
        buffers = [state[name] for name, _ in sharded.named_buffers() if name in state]
        for buffer in buffers:
            dist.broadcast(buffer, 0)
        model = copy.deepcopy(self._empty)
        model.load_state_dict(state, assign=True)
        return model.requires_grad_(False)


def shard(
    task: Task,
    averages: Iterable[nn.Module],
    world: World,
    runtime: RuntimeOptions,
    precision: Precision,
) -> Blueprint | None:
    """With ``--parallel fsdp``, leave this process its share of ``task``, if there are several.

    Every transformer block and every output adapter is gathered by itself, in the type that the
    run computes in, except for adapters in float32. The rest (tokens, patch projections, balancer)
    is small, and gathered in float32. Gradients are summed in float32.

    Args:
        task: Changed in place: every parameter is another object afterwards, so that optimisers
            are built later.
        averages: Running averages of its model, sharded alike.
        world: The processes.
        runtime: ``--parallel``.
        precision: What the run computes in.

    Returns:
        What whole models are made from; ``None`` if nothing was sharded.

    Raises:
        UserError: A device that FSDP does not run on.
    """
    if runtime.parallel != "fsdp" or world.size == 1:
        return None
    if world.device.type not in ("cpu", "cuda"):
        raise UserError(f"--parallel fsdp: runs on cuda and cpu, not on {world.device.type}")
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(world.device.type, (world.size,))
    blueprint = Blueprint(task.model, world)
    for model in averages:
        _shard(model, cast(MultiModalTransformer, model), mesh, Precision(world.device.type, None))
    _shard(
        task, cast(MultiModalTransformer, task.model), mesh, precision, task.fp32_output_adapters
    )
    return blueprint


def _shard(
    root: nn.Module,
    model: MultiModalTransformer,
    mesh: DeviceMesh,
    precision: Precision,
    in_float32: Iterable[str] = (),
) -> None:
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    # Autocast decides about activations, as everywhere: inputs of blocks are left as they are.
    full = MixedPrecisionPolicy(cast_forward_inputs=False)
    low = MixedPrecisionPolicy(precision.dtype, torch.float32, cast_forward_inputs=False)
    parts = {str(i): block for i, block in enumerate(model.encoder)}
    for name, part in [*parts.items(), *model.output_adapters.items()]:
        whole_type = precision.dtype is None or name in in_float32 or _has_batch_norm(part)
        if not any(True for _ in part.parameters()):
            continue
        fully_shard(part, mesh=mesh, mp_policy=full if whole_type else low)
        if not whole_type:
            _norms_in_float32(part)
        if hasattr(part, "forward_patches"):
            register_fsdp_forward_method(part, "forward_patches")
    fully_shard(root, mesh=mesh, mp_policy=full)
    for module in root.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_load_state_dict_pre_hook(_take_shares)  # type: ignore[no-untyped-call]


def set_exchange(task: nn.Module, *, on: bool) -> None:
    """Whether the next backward pass of a sharded task exchanges gradients or only adds them up."""
    from torch.distributed.fsdp import FSDPModule

    cast(FSDPModule, task).set_requires_gradient_sync(on)


def whole(value: Any, world: World) -> Any:
    """A state with plain tensors in place of sharded ones; all processes call it.

    One tensor after the other is gathered and brought to the CPU, on rank 0 alone: elsewhere
    there are empty ones.
    """
    if isinstance(value, Tensor) and hasattr(value, "full_tensor"):
        full = _full(value)
        return full.cpu() if world.is_main else torch.zeros(0)
    if isinstance(value, Mapping):
        return {key: whole(item, world) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [whole(item, world) for item in value]
    return value


def optimizer_shares(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """This process's share of an optimiser's state: what is shaped like a parameter is sharded."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    names = [name for group in state["param_groups"] for name in group["params"]]
    owner = dict(zip(names, params, strict=False))
    shares = {
        name: {key: _like(value, owner.get(name)) for key, value in values.items()}
        for name, values in state["state"].items()
    }
    return {**state, "state": shares}


def _take_shares(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Before a module loads whole weights: cut out this process's share."""
    for name, param in module.named_parameters(recurse=False):
        if prefix + name in state_dict:
            state_dict[prefix + name] = _like(state_dict[prefix + name], param)


def _like(value: Any, param: Tensor | None) -> Any:
    """``value``, sharded as ``param`` is if their shapes agree; every process has all of it."""
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


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


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
