"""Loss and gradient of a step do not depend on how the global batch is split.

Four samples as 4x1, 2x2 and 1x4 batches on one process, as 2x1 and 1x2 on each of two (DDP and
FSDP): with void and invalid pixels, missing modalities, pixels without data, soft targets, label
smoothing.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

import tests.conftest  # noqa: F401  the processes need its model size
from multimae.multimae import MultiMAE, MultiViT
from multimae.specs.heads import HeadOptions, HeadSpec, LinearOptions
from multimae.specs.modalities import Modality, make_table, select
from multimae.specs.spec import ModelSpec
from utils.config.cls_options import ClsDataOptions
from utils.config.depth_options import TARGET as DEPTH_TARGET
from utils.config.depth_options import DepthConfig
from utils.config.options import RuntimeOptions
from utils.config.semseg_options import SemsegConfig
from utils.data.batches import Batch
from utils.data.dense_transforms import INSIDE
from utils.data.sets.class_folders import ClassIndex
from utils.data.sets.taskonomy_views import TASKS as TASKONOMY
from utils.data.sets.taskonomy_views import VALID
from utils.distributed.sharding import FullModelBuilder, shard
from utils.distributed.world import World
from utils.tasks import classification
from utils.tasks.base import StepPosition, Task
from utils.tasks.classification import ClassificationTask
from utils.tasks.depth_estimation import DepthTask
from utils.tasks.pretraining import PretrainTask
from utils.tasks.regression import Target
from utils.tasks.segmentation import SegmentationTask
from utils.tasks.taskonomy import TaskonomyTask
from utils.training.seeding import MaskOptions
from utils.training.state import TrainState
from utils.training.stepper import Precision, Stepper

CPU, SIDE, SAMPLES = torch.device("cpu"), 32, 4
ONE_PROCESS, TWO_PROCESSES = ((4, 1), (2, 2), (1, 4)), ((2, 1), (1, 2))
PRETRAIN = ("rgb", "depth", "semseg")
DENSE = HeadOptions("convnext", dim=64, depth=1, preds_per_patch=4)


def rgb(seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (SAMPLES, 3, SIDE, SIDE), generator=drawn, dtype=torch.uint8)


def batch_of(images: Mapping[str, Tensor], **more: Any) -> Batch:
    return Batch(dict(images), [f"{'ab'[i % 2]}/{i}" for i in range(SAMPLES)], **more)


def multivit(inputs: list[Modality], *heads: HeadSpec) -> MultiViT:
    torch.manual_seed(0)
    spec = ModelSpec("multivit_nano", tuple(inputs), (), 8, SIDE, heads=heads)
    return MultiViT.from_spec(spec)


def pretraining(
    depth_in: tuple[bool, ...], normalization: str = "mean_std", **options: Any
) -> tuple[Task, Batch]:
    depth = {"no_data": 0, "normalization": normalization}
    table = make_table({"semseg": {"num_classes": 5}, "depth": depth})
    inputs = select(table, PRETRAIN)
    outputs = [*inputs, table["norm_rgb"]]
    torch.manual_seed(0)
    spec = ModelSpec("pretrain_multimae_nano", tuple(inputs), tuple(outputs), 8, SIDE)
    spec = dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, dim=32, num_heads=4))
    model = MultiMAE.from_spec(spec)
    task = PretrainTask(model, inputs, outputs, 8, MaskOptions(12, alphas=0.3), **options)
    if options.get("balancer") == "uncertainty":
        task.balancer.log_vars.data = torch.tensor([0.3, -0.5, 0.2, 0.1])
    drawn = torch.Generator().manual_seed(1)
    depth = torch.randint(1, 9000, (SAMPLES, 1, SIDE, SIDE), generator=drawn)
    depth[2, :, :20] = 0
    depth[1] = 0
    images = {
        "rgb": rgb(),
        "depth": depth.to(torch.uint16),
        "semseg": torch.randint(0, 5, (SAMPLES, 8, 8), generator=drawn, dtype=torch.uint8),
    }
    present = {"depth": torch.tensor(depth_in), "semseg": torch.tensor([True, True, True, False])}
    return task, batch_of(images, present=present)


def segmentation(**options: Any) -> tuple[Task, Batch]:
    inputs, target = select(make_table({}), ["rgb"]), SemsegConfig().data.target()
    target = dataclasses.replace(target, num_classes=5)
    channels = 5 + bool(options.get("learn_padding"))
    model = multivit(inputs, HeadSpec("semseg", target, channels, DENSE))
    labels = torch.randint(0, 6, (SAMPLES, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    labels[0, :28] = labels[2, :5] = labels[3] = 0
    inside = torch.ones(SAMPLES, SIDE, SIDE, dtype=torch.bool)
    inside[1, 20:] = False
    images = {"rgb": rgb(), target.name: labels.to(torch.uint8), INSIDE: inside}
    task = SegmentationTask(model, inputs, target, zero_is_void=True, **options)
    return task, batch_of(images)


def depth(loss: str) -> tuple[Task, Batch]:
    inputs = select(make_table({}), ["rgb"])
    target = Target("depth", DepthConfig().data.target(), 1)
    drawn = torch.Generator().manual_seed(3)
    truth = torch.randint(1, 9000, (SAMPLES, 1, SIDE, SIDE), generator=drawn)
    truth[0, :, :28] = truth[2, :, :3] = truth[3] = 0
    model = multivit(inputs, target.head_spec(DENSE))
    images = {"rgb": rgb(), DEPTH_TARGET: truth.to(torch.uint16)}
    return DepthTask(model, inputs, [target], loss), batch_of(images)


def taskonomy() -> tuple[Task, Batch]:
    inputs = select(make_table({}), ["rgb"])
    targets = [Target(name, *TASKONOMY[name]) for name in (VALID, "normal")]
    model = multivit(inputs, *(t.head_spec(HeadOptions("dpt")) for t in targets))
    drawn = torch.Generator().manual_seed(4)
    zbuffer = torch.randint(1, 9000, (SAMPLES, 1, SIDE, SIDE), generator=drawn)
    zbuffer[0, :, :24] = zbuffer[2, :, :5] = zbuffer[3] = 65535
    images = {"rgb": rgb(), VALID: zbuffer.to(torch.uint16), "normal": rgb(5)}
    # Not l1: its kinks turn rounding errors of float32 into steps of the gradient.
    return TaskonomyTask(model, inputs, targets, "mse"), batch_of(images)


def classes(mixup: float, weights: Sequence[float] | None = None) -> tuple[Task, Batch]:
    inputs, index = select(make_table({}), ["rgb"]), ClassIndex(["a", "b"])
    target = Modality(
        "cls", "labels", num_classes=2, loss="cross_entropy", interpolation="nearest", plot="labels"
    )
    head = HeadSpec("cls", target, 2, LinearOptions())
    options = ClsDataOptions(mixup=mixup, cutmix=0.0, smoothing=0.1)
    task = ClassificationTask(
        multivit(inputs, head), inputs, {"train": index}, head, options, weights
    )
    return task, batch_of({"rgb": rgb()})


def soft_targets(_: Any, x: Any, labels: Tensor, inputs: Any) -> tuple[Any, Tensor]:
    """Soft targets that depend on the sample alone: Mixup pairs samples of one batch."""
    weight = x["rgb"].mean(dim=(1, 2, 3)).sigmoid()
    return x, torch.stack([weight, 1 - weight], dim=1)


Case = Callable[[], tuple[Task, Batch]]
SOME, NONE = (False, False, True, True), (False,) * SAMPLES
CASES: dict[str, Case] = {
    "missing modality": lambda: pretraining(SOME),
    "missing modality, uncertainty": lambda: pretraining(SOME, balancer="uncertainty"),
    "standardized depth": lambda: pretraining(SOME, "robust"),
    "modality missing everywhere": lambda: pretraining(NONE, balancer="uncertainty"),
    "loss on unmasked": lambda: pretraining(SOME, loss_on_unmasked=True),
    "void": segmentation,
    "learnt void": lambda: segmentation(learn_padding=True),
    "dice": lambda: segmentation(losses=("ce", "dice")),
    "dice_weights": lambda: segmentation(class_weights=(1, 5, 0, 0, 3), losses=("dice",)),
    "focal": lambda: segmentation(class_weights=(1, 5, 0.2, 0, 3), losses=("ce", "focal")),
    "class weights": lambda: segmentation(class_weights=(1, 5, 0.2, 0, 3), learn_padding=True),
    "invalid depth, l1": lambda: depth("l1"),
    "invalid depth, mse": lambda: depth("mse"),
    "invalid depth, several heads": taskonomy,
    "label smoothing": lambda: classes(0.0),
    "soft targets": lambda: classes(0.8),
    "label smoothing, class weights": lambda: classes(0.0, (1, 4)),
    "soft targets, class weights": lambda: classes(0.8, (1, 4)),
}


class RecordedSGD(torch.optim.SGD):
    """Keeps the gradients of its step."""

    def step(self, closure: Any = None) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params]
        self.gradients = [getattr(g, "full_tensor", lambda g=g: g)() for g in gradients]


RUNTIME = RuntimeOptions(seed=0, on_nonfinite="stop", find_unused_params=True)


def make_stepper(
    task: Task,
    optimizer: torch.optim.Optimizer,
    world: World,
    size: int,
    accum: int,
    full_model_builder: FullModelBuilder | None = None,
) -> tuple[Stepper, TrainState]:
    precision = Precision("cpu", None)
    state = TrainState(task, optimizer, precision.scaler(), full_model_builder=full_model_builder)
    plan: Any = SimpleNamespace(accum_steps=accum, batch_size=size, global_batch=SAMPLES)
    optim: Any = SimpleNamespace(clip_grad=None)
    return Stepper(state, world, plan, precision, optim, RUNTIME), state


def update(
    case: Case,
    world: World,
    size: int,
    accum: int,
    parallel: Literal["ddp", "fsdp"] = "ddp",
    **compiled: Any,
) -> dict[str, Tensor]:
    """Logs (means over processes) and the gradient of one update of four samples.

    ``compiled``: options of ``torch.compile``; none: not compiled.
    """
    task, full = case()
    if compiled:
        task.compile_step(sharded=parallel == "fsdp", **compiled)
    builder = shard(task, (), world, None, compiled) if parallel == "fsdp" else None
    optimizer = RecordedSGD(task.parameters(), lr=1.0)
    stepper, state = make_stepper(task, optimizer, world, size, accum, builder)
    starts = [(i * world.size + world.rank) * size for i in range(accum)]
    logs = stepper.step(state, [part_of(full, start, size) for start in starts]).logs
    del stepper
    gradient = torch.cat([g.flatten() for g in optimizer.gradients])
    return {"gradient": gradient, **{k: world.sum(v) / world.size for k, v in logs.items()}}


def poisoned_update(
    world: World, size: int, accum: int, fused: bool, on_device: bool = False
) -> tuple[bool, bool, bool]:
    """One update with NaN gradients on the last process.

    Returns:
        Whether weights changed, whether they are finite, whether the norm is.
    """
    task, full = segmentation()
    parameters = list(task.parameters())
    if world.rank == world.size - 1:
        parameters[0].register_hook(lambda gradient: gradient * float("nan"))
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, fused=fused)
    stepper, state = make_stepper(task, optimizer, world, size, accum)
    if on_device:  # as on a GPU
        stepper.reads_norm = False
        stepper.guard = GradScaler("cpu", init_scale=1.0, enabled=fused)
    starts = [(i * world.size + world.rank) * size for i in range(accum)]
    norm = stepper.step(state, [part_of(full, start, size) for start in starts]).logs["grad_norm"]
    changed = any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    moments = [x for values in optimizer.state.values() for x in values.values()]
    finite = all(bool(x.isfinite().all()) for x in [*parameters, *moments])
    return changed, finite, bool(norm.isfinite())


# (fused optimizer, on the device): only an optimizer that cannot skip there decays the weights.
POISONED = {
    (True, False): (False, True, False),
    (False, False): (False, True, False),
    (True, True): (False, True, False),
    (False, True): (True, True, False),
}


def part_of(batch: Batch, start: int, size: int) -> Batch:
    """Samples of a batch as a loader would collate them."""
    rows = slice(start, start + size)
    present = {name: flags[rows] for name, flags in batch.present.items() if not flags[rows].all()}
    images = {name: x[rows] for name, x in batch.images.items()}
    return Batch(images, batch.names[rows], present=present)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    classification.mix = soft_targets  # type: ignore[assignment]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = World(rank, 2, CPU)
    found = {
        (name, split): update(case, world, *split)
        for name, case in CASES.items()
        for split in TWO_PROCESSES
    }
    found |= {
        (f"{name}, sharded", split): update(case, world, *split, "fsdp")
        for name, case in CASES.items()
        for split in TWO_PROCESSES
    }
    for split in TWO_PROCESSES:
        for options, expected in POISONED.items():
            assert poisoned_update(world, *split, *options) == expected, (split, options)
    if rank == 0:
        torch.save(found, f"{folder}/found")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(work, (str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    return torch.load(folder / "found", weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_splitting_changes_neither_losses_nor_gradient(
    name: str, on_two_processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "mix", soft_targets)
    world = World(0, 1, CPU)
    found = {f"1 process, {s}": update(CASES[name], world, *s) for s in ONE_PROCESS}
    for key in (name, f"{name}, sharded"):
        found |= {f"2 processes, {key}, {s}": on_two_processes[key, s] for s in TWO_PROCESSES}
    (_, expected), *others = found.items()
    assert expected["loss"] > 0 and expected["gradient"].abs().max() > 1e-3
    for split, values in others:
        for key, value in expected.items():
            error = (values[key] - value).norm() / value.norm().clamp_min(1e-9)
            assert error < 1e-6, (split, key, float(error))


def test_batches_without_a_modality_do_not_halve_its_loss() -> None:
    """Only the third sample has valid depth: its loss is that of the sample alone."""
    task, full = pretraining((False, True, True, False))
    alone = update(lambda: (task, full), World(0, 1, CPU), 4, 1)["loss/depth"]
    position = StepPosition(0, 2, SAMPLES)
    expected = task(part_of(full, 2, 1), position).logs["loss/depth"]
    torch.testing.assert_close(alone, expected)
    split = update(lambda: (task, full), World(0, 1, CPU), 1, 4)["loss/depth"]
    torch.testing.assert_close(split, expected)


@pytest.mark.parametrize("split", ONE_PROCESS)
def test_the_logged_mean_is_over_updates_that_have_the_modality(split: tuple[int, int]) -> None:
    world, (size, accum) = World(0, 1, CPU), split
    task, with_depth = pretraining(SOME)
    stepper, state = make_stepper(task, RecordedSGD(task.parameters()), world, size, accum)
    logs = []
    for batch in (with_depth, pretraining(NONE)[1]):
        batches = [part_of(batch, i * size, size) for i in range(accum)]
        update = stepper.step(state, batches)
        state.window.add(state.step, update.logs, update.counted)
        logs.append({name: value.item() for name, value in update.logs.items()})
    values = state.window.read(world)
    assert values["loss/depth"] == pytest.approx(logs[0]["loss/depth"]) and logs[0]["loss/depth"]
    for name in ("loss", "loss/rgb"):
        assert values[name] == pytest.approx((logs[0][name] + logs[1][name]) / 2)


@pytest.mark.parametrize("case", [segmentation, lambda: depth("mse"), taskonomy])
def test_an_update_without_labelled_pixels_does_not_lower_the_mean(case: Case) -> None:
    world, (task, full) = World(0, 1, CPU), case()
    stepper, state = make_stepper(task, RecordedSGD(task.parameters()), world, 1, 1)
    for sample in (1, 3):  # all pixels of the last sample are invalid
        update = stepper.step(state, [part_of(full, sample, 1)])
        state.window.add(state.step, update.logs, update.counted)
        if sample == 1:
            first = {name: value.item() for name, value in update.logs.items()}
    values = state.window.read(world)
    losses = [name for name in first if name.startswith("loss")]
    assert {n: values[n] for n in losses} == pytest.approx({n: first[n] for n in losses})
    assert first["loss"] > 0


def test_absent_modality_does_not_change_its_log_var() -> None:
    task, full = pretraining(NONE, balancer="uncertainty")
    for split in ((4, 1), (1, 4)):
        update(lambda: (task, full), World(0, 1, CPU), *split)
        found = update(lambda: (task, full), World(0, 1, CPU), *split)
        assert found["loss/depth"] == 0
        (log_vars,) = [p for n, p in task.named_parameters() if n == "balancer.log_vars"]
        index = [i for i, p in enumerate(task.parameters()) if p is log_vars][0]
        sizes = [p.numel() for p in task.parameters()]
        gradient = found["gradient"].split(sizes)[index]
        assert gradient[1] == 0 and (gradient[[0, 2, 3]] != 0).all()


@pytest.mark.parametrize("split", ONE_PROCESS)
def test_masks_are_drawn_once_and_batches_copied_one_at_a_time(
    split: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, to, drawn = MaskOptions.draw_noise, Batch.to, []
    copies: weakref.WeakSet[Batch] = weakref.WeakSet()
    most = [0]

    def counted_draw(self: MaskOptions, *args: Any, **options: Any) -> Any:
        drawn.append(args)
        return draw(self, *args, **options)

    def counted_to(self: Batch, device: Any) -> Batch:
        if self in copies:  # there already
            return self
        copy = to(self, device)
        copies.add(copy)
        most[0] = max(most[0], len(copies))
        return copy

    monkeypatch.setattr(MaskOptions, "draw_noise", counted_draw)
    monkeypatch.setattr(Batch, "to", counted_to)
    monkeypatch.setattr(Batch, "__hash__", object.__hash__)
    update(lambda: pretraining(SOME), World(0, 1, CPU), *split)
    assert (len(drawn), most[0]) == (split[1], 1)


def test_samples_are_counted_by_the_masks_of_the_update() -> None:
    """Three samples have labels; one of them is visible throughout, and has no loss."""
    task, full = pretraining(SOME)
    position = StepPosition(0, 0, SAMPLES)
    drawn = task.draw_masks(full, position)
    assert drawn is not None
    labels = drawn.task_masks["semseg"].clone()
    labels[0], labels[1:] = 0, 1
    masks = dataclasses.replace(drawn, task_masks={**drawn.task_masks, "semseg": labels})
    for given, expected in ((drawn, 3), (masks, 2)):
        counts = task.count(full, position._replace(masks=given))
        assert counts[task.loss_names.index("loss/semseg")] == expected


@pytest.mark.parametrize("split", ONE_PROCESS)
@pytest.mark.parametrize("options", POISONED)
def test_a_nan_gradient_does_not_reach_the_weights(
    split: tuple[int, int], options: tuple[bool, bool]
) -> None:
    """On two processes, `work` checks the same with a NaN on one of them."""
    assert poisoned_update(World(0, 1, CPU), *split, *options) == POISONED[options]
