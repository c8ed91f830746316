"""The fast step equals the plain one, without synchronisation, recompilation or extra memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.amp.grad_scaler import GradScaler

import tests.conftest  # noqa: F401  the model's size
from multimae.nn.layers import Block
from multimae.nn.masking import masks_from_task_masks
from multimae.nn.recompute import keep_products, selective_contexts
from multimae.specs.modalities import Modality, select
from tests.multimae.test_golden import PRETRAIN, pretrain_model
from tests.support.devices import DEVICES, no_waiting
from tests.support.golden import assert_close, golden
from tools.bench.contenders import synthetic_batch
from tools.bench.counting import count_host_syncs, measure_work
from tools.bench.plain_step import PlainMultiMAE
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.data.batches import Batch
from utils.distributed.world import World
from utils.tasks.base import StepPosition
from utils.tasks.pretraining import PretrainTask, Targets, build_task, pretrain_optimizer
from utils.training.schedule import make_run_plan
from utils.training.seeding import MaskOptions
from utils.training.state import TrainState
from utils.training.stepper import Stepper, choose_precision

CPU = torch.device("cpu")
on_every_device = pytest.mark.parametrize("device", DEVICES, ids=str)
SIDE = 32


def config(*more: str) -> PretrainConfig:
    return parse_config(
        PretrainConfig,
        [
            *("--model", "pretrain_multimae_nano", "--input_size", str(SIDE), "--patch_size", "8"),
            *("--num_encoded_tokens", "12", "--decoder_dim", "32", "--decoder_depth", "1"),
            *("--decoder_num_heads", "4", "--modalities", "{semseg: {num_classes: 5}}"),
            *("--epochs", "1", "--warmup_epochs", "0", "--batch_size", "4", "--blr", "0.05"),
            *("--device", "cpu", "--precision", "fp32", *more),
        ],
    )


def make_task(cfg: PretrainConfig) -> PretrainTask:
    torch.manual_seed(0)
    table = cfg.table()
    return build_task(cfg, select(table, cfg.in_names), select(table, cfg.out_names))


def batch(task: PretrainTask, seed: int = 0, size: int = 4) -> Batch:
    return synthetic_batch(list(task.inputs), SIDE, size, seed)


def plain_losses(task: PretrainTask, images: Batch, step: int) -> dict[str, Tensor]:
    from multimae.images.preprocess import prepare

    x = prepare(images.images, task.modalities)
    layout = task.model.layout_of({m.name: x[m.name] for m in task.inputs})
    position, device = StepPosition(step, 0, len(images)), next(iter(x.values())).device
    masks = task.masks.draw(layout, position, len(images), device)
    plain = PlainMultiMAE(task.model, task.outputs, task.patch_size)
    return plain.losses(plain(x, layout, masks), x, masks)


@on_every_device
@pytest.mark.parametrize("case", PRETRAIN)
def test_golden_losses_and_gradients(case: str, device: torch.device) -> None:
    """Fast and plain step on the golden images and masks."""
    g = golden(case).to(device)
    model, table = pretrain_model(g.config)
    model.to(device).load_state_dict(g["weight"], strict=True)
    outputs, patch = select(table, g.config["out_domains"]), g.config["patch_size"]
    inputs = [m for m in select(table, g.config["in_domains"]) if m.name in g["input"]]
    x = {m.name: g["input"][m.data_name] for m in (*inputs, *outputs)}
    layout = model.layout_of({m.name: x[m.name] for m in inputs})
    given = {k[5:]: v for k, v in g["mask"].items() if k.startswith("task.")}
    masks = masks_from_task_masks(given, layout)
    task = PretrainTask(model, inputs, outputs, patch, MaskOptions(1))
    fast = task.compute_losses(Targets(x), masks)
    gradients = grads(task, fast)
    plain = PlainMultiMAE(model, outputs, patch)
    slow = plain.losses(plain({m.name: x[m.name] for m in inputs}, layout, masks), x, masks)
    for name, loss in g["loss"].items():
        assert_close(fast[name].detach(), loss)
        assert_close(slow[name].detach(), loss)
    for name, gradient in grads(task, slow).items():
        assert_close(gradients[name], gradient)


def grads(task: PretrainTask, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    task.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    named = task.named_parameters()
    return {n: p.grad for n, p in named if p.grad is not None and p.grad.abs().max() > 1e-7}


@on_every_device
def test_fifty_training_steps(device: torch.device) -> None:
    """Losses and gradients of the fast and the plain step, at the same weights."""
    task, images_of, ours, _ = run_of_fifty(device)
    other = copy.deepcopy(task)
    for step in range(50):
        fast = task(images_of(step), StepPosition(step, 0, 4))
        slow = plain_losses(other, images_of(step), step)
        for name, loss in slow.items():
            assert fast.logs[f"loss/{name}"].item() == pytest.approx(loss.item(), rel=1e-5), step
        assert distance(grads(task, {"sum": fast.loss}), grads(other, slow)) < 1e-5, step
        ours.step()
        other.load_state_dict(task.state_dict())


def test_fifty_steps_match_the_reference_one_by_one() -> None:
    """Runs that only start alike; both optimisers are AdamW, one of them fused.

    They drift apart: AdamW and the sign of an absolute error make much of a rounding error.
    """
    task, images_of, ours, adamw = run_of_fifty(CPU)
    other = copy.deepcopy(task)
    theirs = adamw(other.parameters())
    losses = []
    for step in range(50):
        fast = task(images_of(step), StepPosition(step, 0, 4)).loss
        slow = torch.stack(list(plain_losses(other, images_of(step), step).values())).sum()
        assert fast.item() == pytest.approx(slow.item(), rel=1e-3), step
        losses.append(fast.item())
        for loss, optimizer in ((fast, ours), (slow, theirs)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def run_of_fifty(device: torch.device) -> tuple[PretrainTask, Callable[[int], Batch], Any, Any]:
    """A task, its batches, its optimiser at a constant rate, and torch's own AdamW."""
    cfg = config()
    task = make_task(cfg).to(device)
    ours = pretrain_optimizer(cfg, task)
    for group in ours.param_groups:
        group["lr"] = 1e-3
    adamw = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    return task, lambda step: batch(task, step).to(device), ours, adamw


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm of the difference of two gradients, relative to the second."""
    assert a.keys() == b.keys()
    gap, length = (
        torch.cat([t.flatten() for t in parts]).norm().item()
        for parts in ([a[name] - b[name] for name in b], list(b.values()))
    )
    return gap / length


@on_every_device
@pytest.mark.parametrize("missing", [False, True])
def test_step_between_log_lines_does_not_synchronise(missing: bool, device: torch.device) -> None:
    cfg = config("--clip_grad", "1", "--task_balancer", "uncertainty")
    task = make_task(cfg).to(device)
    precision = choose_precision("fp32", device)
    plan = make_run_plan(100, 1, cfg.optim, cfg.runtime, blr=cfg.optim.blr)
    state = TrainState(task, pretrain_optimizer(cfg, task), precision.scaler())
    stepper = Stepper(state, World(0, 1, device), plan, precision, cfg.optim, cfg.runtime)
    if device.type == "cpu":  # as on a GPU
        stepper.reads_norm, stepper.guard = False, GradScaler("cpu", init_scale=1.0)
    images = batch(task)
    if missing:
        images.present = {"depth": torch.tensor([True, False, True, False])}
    images = images.to(device)

    def take(step: int) -> None:
        plan.schedule.apply(state.optimizer, step)
        state.window.add(step, stepper.step(state, [images]).logs)

    def some_steps() -> None:
        take(0)  # on a GPU this one uploads what is kept
        with no_waiting(device):
            for step in range(1, 4):
                take(step)

    assert not count_host_syncs(some_steps)
    waits = count_host_syncs(lambda: (torch.ones(3).sum().item(), torch.ones(3)[torch.ones(3) > 0]))
    assert set(waits) == {"item", "nonzero"}


# Fewer decoders are traced faster.
TWO = ("--in_domains", "rgb-semseg", "--out_domains", "rgb-semseg", "--no_extra_norm_pix_loss",
       "--decoder_depth", "0")  # fmt: skip


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
def test_one_graph_for_all_masks() -> None:
    """200 draws, with one smaller batch in between (a skipped bad sample)."""
    task = make_task(config(*TWO))
    expected = [task(batch(task, i), StepPosition(i, 0, 4)).loss.item() for i in range(3)]
    task.compile_step(backend="eager", fullgraph=True)
    images = [batch(task, i) for i in range(3)]
    shorter = batch(task, 0, size=3)
    for i in range(200):
        loss = task(images[i % 3], StepPosition(i, 0, 4)).loss
        if i < 3:
            assert loss.item() == pytest.approx(expected[i], rel=1e-6)
        if i == 100:
            task(shorter, StepPosition(i, 0, 4))
    assert counters["stats"]["unique_graphs"] <= 2
    assert not counters["graph_break"]


@on_every_device
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_gradients_are_the_same(device: torch.device) -> None:
    task = make_task(config(*TWO)).to(device)
    images, position = batch(task).to(device), StepPosition(0, 0, 4)
    task(images, position).loss.backward()
    expected = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    task.zero_grad(set_to_none=True)
    backend = "inductor" if device.type == "cuda" else "aot_eager"  # which needs no C++ compiler
    task.compile_step(backend=backend, fullgraph=True)
    task(images, position).loss.backward()
    for name, param in task.named_parameters():
        if param.requires_grad:
            torch.testing.assert_close(param.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_saves_memory_and_selectively_repeats_no_layer() -> None:
    cfg = config("--model", "pretrain_multimae_tiny", "--input_size", "64", "--patch_size", "8",
                 "--num_encoded_tokens", "98", "--decoder_dim", "64", "--decoder_depth", "1",
                 "--decoder_num_heads", "8", "--modalities", "{}")  # fmt: skip
    task = make_task(cfg)
    x = {m.name: fake_images(m, 4, 64) for m in task.modalities}
    layout = task.model.layout_of({m.name: x[m.name] for m in task.inputs})
    masks = task.masks.draw(layout, StepPosition(0, 0, 4), 4, CPU)

    def forward() -> Tensor:
        return torch.stack(list(task.compute_losses(Targets(x), masks).values())).sum()

    saved, flops = {}, {}
    for how in (False, "selective", True):
        task.model.set_grad_checkpointing(enable=how)
        work = measure_work(lambda: forward().backward(), forward)
        saved[how], flops[how] = work.saved_bytes, work.flops
    blocks = 12 * 4 * 99 * 192 * 4  # outputs of the encoder's blocks
    assert saved[False] > 8 * blocks  # something was counted
    assert saved["selective"] < 0.65 * saved[False] and saved[True] < 0.5 * saved["selective"]
    logits = 2 * 4 * 99 * 99 * 192 * 12  # of the encoder, on CPUs
    assert flops["selective"] - flops[False] == pytest.approx(logits, rel=0.3)  # and decoders
    assert flops[True] > 1.15 * flops[False]


def fake_images(m: Modality, size: int, side: int) -> Tensor:
    side //= m.stride
    if m.is_labels:
        return torch.zeros(size, side, side, dtype=torch.long)
    return torch.randn(size, m.num_channels, side, side)


@on_every_device
@pytest.mark.parametrize("how", [{}, {"context_fn": selective_contexts}], ids=["all", "selective"])
def test_gradient_checkpointing_changes_no_number(how: Any, device: torch.device) -> None:
    """Nor with dropout, which is drawn again."""
    torch.manual_seed(0)
    block = Block(32, 4, drop=0.1, attn_drop=0.1, drop_path=0.5).to(device)
    x = torch.randn(4, 9, 32, device=device, requires_grad=True)
    results = []
    for block.recompute in (None, how):
        torch.manual_seed(1)
        out = block(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *block.parameters()])))
    torch.testing.assert_close(*results, rtol=0, atol=0 if device.type == "cpu" else 1e-6)


def test_fused_attention_is_saved_unless_it_draws_dropout() -> None:
    """Later dropout would draw other numbers if the attention's were skipped."""
    aten, x = torch.ops.aten, torch.randn(2, 4, 9, 8)
    flash = aten._scaled_dot_product_flash_attention.default
    efficient = aten._scaled_dot_product_efficient_attention.default
    calls = {
        (flash, x, x, x): "MUST_SAVE",
        (flash, x, x, x, 0.1): "PREFER_RECOMPUTE",
        (efficient, x, x, x, None, True): "MUST_SAVE",
        (efficient, x, x, x, None, True, 0.1): "PREFER_RECOMPUTE",
        (aten.native_layer_norm.default, x): "PREFER_RECOMPUTE",
    }
    for (op, *args), expected in calls.items():
        assert keep_products(None, op, *args).name == expected
