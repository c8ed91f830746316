"""Parameter groups and optimizers by name.

Besides PyTorch's keys, a group has ``name``, ``param_names`` (both for reports), ``lr_scale`` and
``scheduled_decay`` (both for :class:`utils.training.schedule.Schedule`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multimae.specs.coercion import did_you_mean
from multimae.specs.errors import UserError

ParamGroup = dict[str, Any]

_DECODERS = "output_adapters"
_FUSED = frozenset({"adam", "adamw", "sgd"})
_FUSED_DEVICES = frozenset({"cpu", "cuda"})


def norm_and_bias(name: str, param: Tensor) -> bool:
    """Whether ``param`` is 1-D (norms, biases), for ``--no_decay_norm_bias``."""
    return param.ndim <= 1


def param_groups(
    named_parameters: Iterable[tuple[str, Tensor]],
    weight_decay: float,
    *,
    lr_scale: Callable[[str], float] | None = None,
    no_decay: Callable[[str, Tensor], bool] | None = None,
    decoder_decay: float | None = None,
) -> list[ParamGroup]:
    """Group trainable parameters by learning-rate scale and weight decay.

    Args:
        named_parameters: From ``module.named_parameters()``; frozen ones are skipped.
        weight_decay: Default weight decay.
        lr_scale: Parameter name -> factor on the learning rate; default: 1.
        no_decay: Whether a parameter has weight decay 0; default: none.
        decoder_decay: Constant weight decay of output adapters; default: ``weight_decay``.

    Returns:
        Groups in order of first appearance.
    """
    groups: dict[tuple[float, float, bool], ParamGroup] = {}
    for name, param in named_parameters:
        if not param.requires_grad:
            continue
        scale = 1.0 if lr_scale is None else lr_scale(name)
        decay, scheduled = weight_decay, True
        if no_decay is not None and no_decay(name, param):
            decay, scheduled = 0.0, False
        elif decoder_decay is not None and _DECODERS in name.split("."):
            decay, scheduled = decoder_decay, False
        group = groups.setdefault(
            (scale, decay, scheduled),
            {
                "name": f"lr x{scale:.4g}, decay {decay:g}" + ("" if scheduled else " (fixed)"),
                "params": [],
                "param_names": [],
                "weight_decay": decay,
                "lr_scale": scale,
                "scheduled_decay": scheduled,
            },
        )
        group["params"].append(param)
        group["param_names"].append(name)
    return list(groups.values())


def build_optimizer(
    groups: Sequence[ParamGroup],
    name: str,
    lr: float,
    *,
    betas: Sequence[float] | None = None,
    eps: float | None = None,
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """Build an optimizer of torch or timm by timm's name (``adamw``, ``sgd``, ``lion``, ...).

    As in timm, ``sgd`` has Nesterov momentum, ``momentum`` has not. Uses fused kernels if
    available.

    Args:
        groups: From :func:`param_groups`.
        name: Any name of ``timm.optim.list_optimizers()``, also ``lookahead_<name>``.
        lr: Learning rate before scaling.
        betas: Betas; default: the optimizer's.
        eps: Term in the denominator; default: the optimizer's.
        momentum: Momentum; ignored by optimizers without.

    Raises:
        UserError: Unknown name, wrong number of betas, no trainable parameters, an unsupported
            optimizer, or a missing package.
    """
    params = [p for group in groups for p in group["params"]]
    if not params:
        raise UserError("nothing to train: every parameter is frozen")
    chosen = {"betas": None if betas is None else tuple(betas), "eps": eps}
    options: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    make = _TORCH_OPTIMIZERS.get(name.lower()) or _from_timm(name, momentum)
    num_betas = make.num_betas
    if betas is not None and num_betas is not None and len(betas) != num_betas:
        raise UserError(f"--opt_betas: {name} takes {num_betas} values, got {len(betas)}")
    if name.lower().removeprefix("lookahead_") in _FUSED and all(_can_fuse(p) for p in params):
        options["fused"] = True
    try:
        return make.build(list(groups), lr=lr, **options)
    except (AssertionError, ImportError, TypeError, ValueError) as err:
        raise UserError(f"--opt {name}: cannot be built: {err}") from err


@dataclass(frozen=True)
class _Optimizer:
    """Constructor and number of betas (``None``: no betas)."""

    build: Callable[..., torch.optim.Optimizer]
    num_betas: int | None


# Default optimizer; built without timm, whose import takes two seconds.
_TORCH_OPTIMIZERS = {"adamw": _Optimizer(partial(torch.optim.AdamW, weight_decay=0.0), 2)}


def _from_timm(name: str, momentum: float) -> _Optimizer:
    from timm.optim import (  # type: ignore[attr-defined]
        create_optimizer_v2,
        get_optimizer_info,
        list_optimizers,
    )

    known = [str(option) for option in list_optimizers()]
    base_name = name.lower().removeprefix("lookahead_")
    if base_name not in known:
        near = did_you_mean(base_name, known)
        raise UserError(f"--opt: unknown optimiser '{name}'{near} Known: {', '.join(known)}.")
    info = get_optimizer_info(base_name)
    if info.second_order:
        raise UserError(f"--opt {name} needs second derivatives, which are not supported")
    build = partial(create_optimizer_v2, opt=name.lower(), momentum=momentum)
    return _Optimizer(build, info.num_betas if info.has_betas else None)


def _can_fuse(param: Tensor) -> bool:
    return param.is_floating_point() and param.device.type in _FUSED_DEVICES
