"""Contenders of the benchmark: full training steps on the same synthetic images.

A step normalizes stored pixels, draws masks, computes losses and gradients and updates the weights.
The product's and the plain step start from equal weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multimae.images.preprocess import prepare
from multimae.multimae import MultiViT
from multimae.nn.tokens import Sides, as_size
from multimae.specs.modalities import Modality, select
from multimae.specs.spec import ModelSpec
from tools.bench.plain_step import PlainMultiMAE
from tools.bench.step_options import StepBenchConfig
from utils.config.pretrain_options import PretrainConfig
from utils.data.batches import Batch
from utils.distributed.sharding import shard
from utils.distributed.world import World
from utils.tasks.base import StepPosition
from utils.tasks.pretraining import PretrainTask, build_task, pretrain_optimizer
from utils.training.compilation import compile_options
from utils.training.schedule import make_run_plan
from utils.training.state import TrainState
from utils.training.stepper import Precision, Stepper, choose_precision


@dataclass(frozen=True)
class Contender:
    """An implementation of the training step.

    Attributes:
        name: Column of the report.
        forward: Loss of step ``i`` with a graph; runs in the caller's autocast.
        update: Run step ``i``.
        parameters: Trained parameters.
        precision: Autocast precision.
    """

    name: str
    forward: Callable[[int], Tensor]
    update: Callable[[int], None]
    parameters: list[nn.Parameter]
    precision: Precision


def synthetic_batch(modalities: list[Modality], sides: Sides, size: int, seed: int = 0) -> Batch:
    """Make ``size`` samples of random stored pixels."""
    generator = torch.Generator().manual_seed(seed)
    images = {}
    height, width = as_size(sides)
    for m in modalities:
        shape: tuple[int, ...] = (size, height // m.stride, width // m.stride)
        top = m.num_classes if m.is_labels else int(m.max_value)
        dtype = torch.uint8 if top <= 256 else torch.uint16
        if not m.is_labels:
            shape = (size, m.num_channels, *shape[1:])
        images[m.name] = torch.randint(top, shape, generator=generator).to(dtype)
    return Batch(images, [""] * size)


def pretraining(cfg: StepBenchConfig) -> tuple[PretrainConfig, PretrainTask]:
    """Configuration and task of a pre-training run."""
    options = cfg.pretrain_config()
    table = options.table()
    inputs, outputs = select(table, options.in_names), select(table, options.out_names)
    return options, build_task(options, inputs, outputs)


def fast(
    cfg: StepBenchConfig, task: PretrainTask, world: World, *, sharded: bool = False
) -> Contender:
    """The training step of ``run_pretraining_multimae.py``; ``sharded``: under FSDP."""
    options = cfg.pretrain_config()
    precision = choose_precision(options.runtime.precision, world.device)
    task = task.to(world.device)
    task.model.set_grad_checkpointing(enable=cfg.bench.grad_checkpointing)
    plan = make_run_plan(1000, 1, options.optim, options.runtime, blr=options.optim.blr)
    builder = None
    if sharded:
        compiled = compile_options(options.runtime) if options.runtime.compile else {}
        if compiled:
            task.compile_step(sharded=True, **compiled)
        builder = shard(task, (), world, precision.dtype, compiled)
    optimizer = pretrain_optimizer(options, task)
    state = TrainState(task, optimizer, precision.scaler(), full_model_builder=builder)
    stepper = Stepper(state, world, plan, precision, options.optim, options.runtime)
    batch = synthetic_batch(list(task.inputs), options.model.input_size, cfg.bench.batch)
    batch = batch.to(world.device)

    def update(i: int) -> None:
        plan.schedule.apply(state.optimizer, i)
        state.window.add(i, stepper.step(state, [batch]).logs)

    return Contender(
        "sharded" if sharded else "fast",
        lambda i: task(batch, StepPosition(i, 0, len(batch))).loss,
        update,
        stepper.parameters,
        precision,
    )


def plain(cfg: StepBenchConfig, task: PretrainTask, world: World) -> Contender:
    """Baseline (a): SPEC.md implemented plainly, with autocast and losses read every step."""
    options = cfg.pretrain_config()
    name = cfg.bench.plain_precision or options.runtime.precision
    precision = choose_precision(name, world.device)
    task = copy.deepcopy(task).to(world.device)
    network = PlainMultiMAE(task.model, task.outputs, task.patch_size)
    scaler = precision.scaler()
    optimizer = torch.optim.AdamW(
        task.parameters(), lr=options.optim.blr, betas=(0.9, 0.95), weight_decay=0.05
    )
    batch = synthetic_batch(list(task.inputs), options.model.input_size, cfg.bench.batch)
    batch = batch.to(world.device)
    plan = make_run_plan(1000, 1, options.optim, options.runtime, blr=options.optim.blr)
    parameters = [p for p in task.parameters() if p.requires_grad]

    def losses(i: int) -> dict[str, Tensor]:
        x = prepare(batch.images, task.modalities)
        layout = task.model.layout_of({m.name: x[m.name] for m in task.inputs})
        position = StepPosition(i, 0, len(batch))
        masks = task.masks.draw(layout, position, len(batch), world.device)
        predicted = network({m.name: x[m.name] for m in task.inputs}, layout, masks)
        with torch.autocast(world.device.type, enabled=False):
            return network.losses(predicted, x, masks)

    def update(i: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = float(plan.schedule.lr[i])
        with precision.autocast():
            parts = losses(i)
        total = torch.stack(list(parts.values())).sum()
        if not total.isfinite().item():
            raise RuntimeError(f"loss {total.item()} at step {i}")
        optimizer.zero_grad()
        scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        scaler.step(optimizer)
        scaler.update()
        _logged = [value.item() for value in (*parts.values(), norm)]

    return Contender(
        "plain",
        lambda i: torch.stack(list(losses(i).values())).sum(),
        update,
        parameters,
        precision,
    )


def vit_mae(cfg: StepBenchConfig, world: World) -> Contender:
    """Baseline (b): ``transformers``' ViTMAEForPreTraining of the same size, random weights."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    options = cfg.pretrain_config()
    precision = choose_precision(options.runtime.precision, world.device)
    encoder: Any = build_shape(options)
    model: Any = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=encoder.dim_tokens,
            num_hidden_layers=len(encoder.encoder),
            num_attention_heads=encoder.encoder[0].attn.num_heads,
            intermediate_size=4 * encoder.dim_tokens,
            image_size=options.model.input_size,
            patch_size=options.model.patch_size,
        )
    )
    model.to(world.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    size = as_size(options.model.input_size)
    images = torch.randn(cfg.bench.batch, 3, *size).to(world.device)

    def forward(_: int) -> Tensor:
        loss: Tensor = model(pixel_values=images).loss
        return loss

    def update(i: int) -> None:
        with precision.autocast():
            loss = forward(i)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    parameters = [p for p in model.parameters() if p.requires_grad]
    return Contender("ViTMAE", forward, update, parameters, precision)


def build_shape(options: PretrainConfig) -> nn.Module:
    """Build the encoder on the meta device, for its width and depth."""
    with torch.device("meta"):
        return MultiViT.from_spec(ModelSpec(options.model.model, ()).encoder())
