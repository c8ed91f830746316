"""The compiled step: graphs without breaks, few of them, equal to the eager step, on one device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters

from multimae.multimae import MultiViT
from multimae.nn.layers import Block
from multimae.nn.masking import MaskNoise
from multimae.nn.network import MultiModalTransformer
from multimae.nn.recompute import selective_contexts
from multimae.specs.modalities import make_table, select
from multimae.specs.spec import ModelSpec
from tests.utils.training import test_global_batch
from tests.utils.training.test_global_batch import (
    CASES,
    CPU,
    SAMPLES,
    SOME,
    Case,
    make_stepper,
    part_of,
    pretraining,
    update,
)
from tools.bench.counting import count_host_syncs
from utils.config.options import RuntimeOptions, StartOptions
from utils.config.parse import ConfigError, parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.config.semseg_options import SemsegConfig
from utils.data.batches import Batch
from utils.distributed.world import World
from utils.tasks.base import StepPosition, Task
from utils.training.compilation import compile_options, compile_parts
from utils.training.ema import average
from utils.training.lora import add_lora
from utils.training.seeding import MaskOptions

EAGER: dict[str, Any] = {"backend": "aot_eager", "fullgraph": True}  # needs no C++ compiler
KINDS = (
    *("standardized depth", "missing modality, uncertainty", "void", "dice", "focal"),
    *("invalid depth, l1", "invalid depth, several heads", "label smoothing, class weights"),
)

ONE_A_SCRIPT = ("standardized depth", "void", *KINDS[5:])


class CountingBackend:
    """Runs graphs as they are traced, and keeps them."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative difference of losses and gradient."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - value).norm() / value.norm().clamp_min(1e-9))
        for name, value in expected.items()
    )


@pytest.mark.parametrize("name", KINDS)
def test_compiled_step_equals_the_eager_step(name: str) -> None:
    alone = World(0, 1, CPU)
    expected = update(CASES[name], alone, 4, 1)
    assert gap(update(CASES[name], alone, 4, 1, **EAGER), expected) < 1e-5


def drawn_again(batch: Batch, seed: int) -> Batch:
    """The samples in another order."""
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    images = {name: x[order] for name, x in batch.images.items()}
    names = [batch.names[i] for i in order]
    return replace(batch, images=images, names=names, present=batch.present)


@pytest.mark.parametrize("name", KINDS)
def test_200_draws_and_a_short_batch_need_two_graphs_of_each_region(name: str) -> None:
    task, full = CASES[name]()
    backend = CountingBackend()
    task.compile_step(backend=backend, fullgraph=True)  # a graph break would be an error
    sizes = set()
    with torch.no_grad():
        for step in range(200):
            batch = drawn_again(full, step)
            if step in (100, 199):
                batch = part_of(batch, 0, 3)
            sizes.add(len(batch))
            task(batch, task.plan(batch, StepPosition(step, 0, SAMPLES)))
            if step == 99:
                assert len(backend.graphs) == len(task.compiled) == 2
    assert sizes == {3, 4}
    assert len(backend.graphs) <= 2 * len(task.compiled)


def test_batches_where_none_or_some_lack_a_modality_share_their_graphs() -> None:
    task, some = pretraining(SOME, may_lack=("depth", "rgb", "semseg"))
    backend = CountingBackend()
    task.compile_step(backend=backend, fullgraph=True)
    losses = []
    for flags in ({}, some.present, {"semseg": some.present["semseg"]}):
        batch = replace(some, present=flags)
        losses.append(task(batch, task.plan(batch, StepPosition(0, 0, SAMPLES))).loss)
    assert len(backend.graphs) == 2
    eager, _ = pretraining(SOME)
    for flags, loss in zip(({}, some.present), losses, strict=False):
        batch = replace(some, present=flags)
        expected = eager(batch, eager.plan(batch, StepPosition(0, 0, SAMPLES))).loss
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_a_step_waits_for_no_device(name: str) -> None:
    task, full = CASES[name]()

    def step() -> None:
        position = task.plan(full, StepPosition(0, 0, SAMPLES))
        task(full, position).loss.backward()

    step()
    assert not count_host_syncs(step)


@pytest.mark.parametrize("name", KINDS)
def test_graphs_hold_tensors_of_one_device_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA graphs need, with the device ``meta`` in the place of a GPU.

    Reading a value of a meta tensor would be an error, and a tensor made on the host shows.
    """
    draw = MaskOptions.draw_noise

    def drawn_on_host(self: MaskOptions, *args: Any) -> MaskNoise:
        drawn = draw(self, *args[:3], CPU, *args[4:])
        return MaskNoise(*(x.to("meta") for x in drawn))

    monkeypatch.setattr(MaskOptions, "draw_noise", drawn_on_host)
    task, full = CASES[name]()
    backend = CountingBackend()
    task.compile_step(backend=backend, fullgraph=True)
    task.to("meta")
    batch = full.to("meta")
    loss = task(batch, task.plan(batch, StepPosition(0, 0, SAMPLES))).loss
    assert len(backend.graphs) == 2 and loss.device.type == "meta"
    values = [node.meta.get("example_value") for g in backend.graphs for node in g.graph.nodes]
    found = Counter(v.device.type for v in values if isinstance(v, Tensor))
    assert found.keys() == {"meta"} and found["meta"] > 50


def recomputing(case: Case, how: Any = True) -> Case:
    """A case with activation checkpointing."""

    def changed() -> tuple[Task, Batch]:
        task, full = case()
        cast(MultiModalTransformer, task.model).set_grad_checkpointing(enable=how)
        return task, full

    return changed


def low_rank() -> tuple[Task, Batch]:
    """Segmentation with LoRA adapters that already changed."""
    task, full = CASES["void"]()
    add_lora(task.model, 2)
    for name, parameter in task.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return task, full


def trained(case: Case, **compiled: Any) -> tuple[dict[str, Tensor], int]:
    """Changes of weights and EMA by a full and a short batch; number of graphs."""
    torch.compiler.reset()
    counters.clear()
    task, full = case()
    begin = torch.cat([p.detach().flatten().clone() for p in task.model.parameters()])
    ema = average(task.model, StartOptions(model_ema_decay=0.5))
    if compiled:
        task.compile_step(**compiled)
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    stepper, state = make_stepper(task, optimizer, World(0, 1, CPU), SAMPLES, 1)
    state.ema = ema
    for state.step, batch in enumerate((full, part_of(full, 0, 3), full)):
        stepper.step(state, [batch])
    found = {
        name: torch.cat([p.detach().flatten() for p in model.parameters()]) - begin
        for name, model in (("weights", task.model), ("average", ema.module))
    }
    return found, counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    "case",
    [
        CASES["void"],
        low_rank,
        recomputing(low_rank, "selective"),
        *(recomputing(CASES[name], "selective") for name in ONE_A_SCRIPT),
    ],
    ids=["EMA", "LoRA", "LoRA, selective", *(f"{name}, selective" for name in ONE_A_SCRIPT)],
)
def test_compiled_updates_equal_eager_ones_with_two_graphs_of_each_region(case: Case) -> None:
    """A full, a short and a full batch; a graph break would be an error."""
    expected, _ = trained(case)
    found, graphs = trained(case, **EAGER)
    assert expected["weights"].norm() > 1.1 * expected["average"].norm() > 0
    assert gap(found, expected) < 1e-5
    assert 0 < graphs <= 2 * len(case()[0].compiled)


def test_compiled_checkpointing_draws_dropout_again() -> None:
    torch.manual_seed(0)
    block, x = Block(32, 4, drop=0.1, attn_drop=0.1, drop_path=0.5), torch.randn(4, 9, 32)
    results = []
    for block.recompute in (None, {}, {"context_fn": selective_contexts}):
        torch.compiler.reset()
        run = torch.compile(block.forward, **EAGER)
        torch.manual_seed(1)
        loss = run(x).square().sum()
        results.append({"loss": loss.detach(), "gradient": gradient(loss, block)})
    assert max(gap(found, results[0]) for found in results[1:]) < 1e-6


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*module.parameters()])])


def on_rank(rank: int, folder: str) -> None:
    """Eager DDP; compiled DDP and FSDP; of two tasks also with activation checkpointing."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world, found = World(rank, 2, CPU), {}
    for name in ONE_A_SCRIPT:
        torch.compiler.reset()  # else the tasks share a limit of compilations
        case = CASES[name]
        found[name] = [
            update(case, world, 1, 2),
            update(case, world, 1, 2, **EAGER),
            update(case, world, 1, 2, "fsdp", **EAGER),
        ]
        if name in RECOMPUTED:
            found[name] += [
                update(recomputing(case), world, 1, 2, **EAGER),
                update(recomputing(case), world, 1, 2, "fsdp", **EAGER),
                update(recomputing(case, "selective"), world, 1, 2),
                update(recomputing(case, "selective"), world, 1, 2, "fsdp"),
                update(recomputing(case, "selective"), world, 1, 2, **EAGER),
                update(recomputing(case, "selective"), world, 1, 2, "fsdp", **EAGER),
            ]
    if rank == 0:
        torch.save(found, f"{folder}/found")
    dist.destroy_process_group()


RECOMPUTED = ("standardized depth", "void")


@pytest.mark.long
def test_compiled_ddp_and_fsdp_equal_eager_ddp(tmp_path: Path) -> None:
    mp.spawn(on_rank, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    found = torch.load(tmp_path / "found", weights_only=True)
    assert [*found] == [*ONE_A_SCRIPT]
    for key, (expected, *others) in found.items():
        assert expected["gradient"].abs().max() > 1e-3
        for compiled in others:
            assert gap(compiled, expected) < 1e-5, key


SHARDED, CAPTURED = ("--parallel", "fsdp"), ("--compile_mode", "reduce-overhead")


@pytest.mark.parametrize("script", [PretrainConfig, SemsegConfig])
def test_cuda_graphs_need_a_gpu_and_weights_that_stay(script: type[Any]) -> None:
    def problem(*more: str) -> str:
        with pytest.raises(ConfigError, match="compile_mode: reduce-overhead") as error:
            parse_config(script, [*CAPTURED, *more])
        return str(error.value)

    assert "compile_mode: reduce-overhead needs compile" in problem("--device", "cuda")
    assert "parallel fsdp" in problem("--device", "cuda", "--compile", *SHARDED)
    assert "device is cpu" in problem("--device", "cpu", "--compile")


def test_a_step_marks_the_begin_of_a_capture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are accumulated belong to one capture: it keeps their gradients and logs."""
    marks = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    options: Any = RuntimeOptions(device="cuda", compile=True, compile_mode="reduce-overhead")
    for runtime, expected in ((options, 1), (RuntimeOptions(compile=True), 0)):
        marks.clear()
        monkeypatch.setattr(test_global_batch, "RUNTIME", runtime)
        update(CASES["void"], World(0, 1, CPU), 1, 4)
        assert len(marks) == expected


def test_every_block_of_a_sharded_model_is_compiled_whatever_its_drop_path() -> None:
    """More graphs than torch allows by default, and none for another block of the same rate."""
    inputs = select(make_table({}), ["rgb"])
    spec = ModelSpec("multivit_tiny", tuple(inputs), (), 16, 32)
    names = MultiViT.from_spec(spec).state_dict().keys()
    for rate, expected in ((0.1, 12), (0.0, 1)):
        torch.compiler.reset()
        model, backend = MultiViT.from_spec(spec, drop_path_rate=rate), CountingBackend()
        compile_parts(model, backend=backend, fullgraph=True)
        for _ in range(2):
            model.encode_tokens(model.embed(torch.randn(2, 3, 32, 32))[0])
        assert len(backend.graphs) == expected
        assert model.state_dict().keys() == names


@pytest.mark.long
def test_inductor_equals_the_eager_step() -> None:
    """The default backend, which builds C++ kernels, with activation checkpointing."""
    alone, compiled = World(0, 1, CPU), compile_options(RuntimeOptions(compile=True))
    expected = update(CASES["void"], alone, 4, 1)
    assert gap(update(recomputing(CASES["void"]), alone, 4, 1, **compiled), expected) < 1e-5
