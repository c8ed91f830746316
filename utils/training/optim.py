"""Parameter groups and optimisers by name.

A group is a plain dict for a torch optimiser with four keys of ours: ``name`` (readable),
``lr_scale`` and ``scheduled_decay`` (read by :class:`utils.training.schedule.Schedule`) and
``param_names`` (for reports).
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

_TOKENS_WITHOUT_DECAY = frozenset({"global_tokens", "mask_token", "pos_emb"})
_DECODERS = "output_adapters"
_FUSED = frozenset({"adam", "adamw", "sgd"})
_FUSED_DEVICES = frozenset({"cpu", "cuda"})


def norm_and_bias(name: str, param: Tensor) -> bool:
    """Whether ``param`` is 1-D (norms, biases): the rule of ``--no_decay_norm_bias``."""
    return param.ndim <= 1


def finetune_no_decay(name: str, param: Tensor) -> bool:
    """Whether fine-tuning exempts ``param``: 1-D, biases, learned tokens, position tables.

    Class embeddings, task embeddings and class tokens do decay (SPEC section 1).
    """
    return param.ndim <= 1 or name.endswith(".bias") or _leaf(name) in _TOKENS_WITHOUT_DECAY


def layer_lr_scale(name: str, depth: int, decay: float) -> float:
    """Layer-wise learning-rate decay ``decay ** (depth + 1 - layer)`` (SPEC section 6).

    Args:
        name: Parameter name in a MultiViT: ``global_tokens`` and ``input_adapters.*`` are layer
            0, ``encoder.{i}.*`` layer ``i + 1``, everything else ``depth + 1``.
        depth: Number of encoder blocks.
        decay: Factor per layer.

    Raises:
        ValueError: ``name`` is of a block that an encoder of ``depth`` blocks does not have.
    """
    head, _, rest = name.partition(".")
    if head in ("global_tokens", "input_adapters"):
        layer = 0
    elif head == "encoder":
        layer = int(rest.partition(".")[0]) + 1
        if layer > depth:
            raise ValueError(f"parameter '{name}' lies beyond the encoder's {depth} blocks")
    else:
        layer = depth + 1
    return float(decay ** (depth + 1 - layer))


def param_groups(
    named_parameters: Iterable[tuple[str, Tensor]],
    weight_decay: float,
    *,
    lr_scale: Callable[[str], float] | None = None,
    no_decay: Callable[[str, Tensor], bool] | None = None,
    decoder_decay: float | None = None,
) -> list[ParamGroup]:
    """Sort trainable parameters into as few groups as their learning rates and decays allow.

    Args:
        named_parameters: As from ``module.named_parameters()``. Frozen ones are skipped.
        weight_decay: Decay of everything not named by the next two.
        lr_scale: Factor on the learning rate by parameter name; 1 if ``None``.
        no_decay: Which parameters have decay 0; none if ``None``.
        decoder_decay: Decay of the output adapters; ``None`` takes ``weight_decay``. It does not
            follow the weight-decay schedule.

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
    """An optimiser of torch or timm by timm's name for it (``adamw``, ``sgd``, ``lion``, ...).

    ``sgd`` is timm's: with Nesterov momentum; ``momentum`` is without. Options that the optimiser
    does not have are ignored. torch's fused kernels are used where they exist.

    Args:
        groups: From :func:`param_groups`.
        name: Any name of ``timm.optim.list_optimizers()``, also ``lookahead_<name>``.
        lr: Learning rate, before the groups' scales.
        betas: Coefficients of running averages; the optimiser's own if ``None``.
        eps: Term in the denominator; the optimiser's own if ``None``.
        momentum: For optimisers that have one.

    Raises:
        UserError: Unknown name, wrong number of betas, nothing to train, an optimiser that this
            training loop cannot drive or whose package is missing.
    """
    params = [p for group in groups for p in group["params"]]
    if not params:
        raise UserError("nothing to train: every parameter is frozen")
    chosen = {"betas": None if betas is None else tuple(betas), "eps": eps}
    options: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    make = _TORCHS.get(name.lower()) or _from_timm(name, momentum)
    takes = make.num_betas
    if betas is not None and takes is not None and len(betas) != takes:
        raise UserError(f"--opt_betas: {name} takes {takes} values, got {len(betas)}")
    if name.lower().removeprefix("lookahead_") in _FUSED and all(_can_fuse(p) for p in params):
        options["fused"] = True
    try:
        return make.build(list(groups), lr=lr, **options)
    except (AssertionError, ImportError, TypeError, ValueError) as err:
        raise UserError(f"--opt {name}: cannot be built: {err}") from err


@dataclass(frozen=True)
class _Optimiser:
    """How one is built; ``num_betas`` is ``None`` for those that have none."""

    build: Callable[..., torch.optim.Optimizer]
    num_betas: int | None


# The default of every script: timm, which loads its model zoo, would take two seconds.
_TORCHS = {"adamw": _Optimiser(partial(torch.optim.AdamW, weight_decay=0.0), 2)}


def _from_timm(name: str, momentum: float) -> _Optimiser:
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
        raise UserError(f"--opt {name} needs second derivatives, which the training loop has not")
    build = partial(create_optimizer_v2, opt=name.lower(), momentum=momentum)
    return _Optimiser(build, info.num_betas if info.has_betas else None)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _can_fuse(param: Tensor) -> bool:
    return param.is_floating_point() and param.device.type in _FUSED_DEVICES
