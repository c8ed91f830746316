"""FSDP on two processes matches DDP and a single process, with the same checkpoint format."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import run_finetuning_cls
import run_pretraining_multimae
import tests.conftest  # noqa: F401  the processes need its model size
from tests.support.scenes import ON_CPU, tiny_run, write_scenes
from tests.utils.tasks.test_pretraining import rows, weights
from utils.config.cls_options import ClsConfig
from utils.config.parse import ConfigError, parse_config
from utils.training import stepper

LOSSES = ("loss", "loss/rgb", "loss/depth", "loss/semseg", "loss/norm_rgb", "grad_norm")
FSDP = ("--parallel", "fsdp")
TWENTY = ("--epochs", "7", "--max_steps", "20", "--blr", "0.01", "--save_ckpt_freq", "3")
# Four images a step, in two halves of one image on each of two processes.
HALVES = (
    *("--batch_size", "1", "--update_freq", "2", "--clip_grad", "0.05", "--epochs", "1"),
    *("--task_balancer", "uncertainty", "--on_nonfinite", "skip"),
)
LOW = ("--batch_size", "2", "--epochs", "1")
exchanges = [0]


class CountedDDP(DistributedDataParallel):
    """Counts gradient reductions."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        # A hook's annotations, being strings here, would be refused.
        self.register_comm_hook(None, lambda _, bucket: _count(bucket))


def _count(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    exchanges[0] += 1
    return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]


def work(rank: int, ports: Sequence[int], runs: Sequence[tuple[str, list[str]]]) -> None:
    """Runs of one of two ranks, in sequence, as under torchrun."""
    os.environ.update(MASTER_ADDR="127.0.0.1", WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    stepper.DistributedDataParallel = CountedDDP  # type: ignore[misc]
    scatter = dist.reduce_scatter_tensor

    def counted(*args: Any, **options: Any) -> Any:
        exchanges[0] += 1
        return scatter(*args, **options)

    dist.reduce_scatter_tensor = counted
    for port, (script, arguments) in zip(ports, runs, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        exchanges[0] = 0
        {"pretrain": run_pretraining_multimae, "cls": run_finetuning_cls}[script].main(arguments)
        if rank == 0:
            folder = Path(arguments[arguments.index("--output_dir") + 1])
            (folder / "exchanges").write_text(str(exchanges[0]))


def in_two_processes(*runs: tuple[str, list[str]]) -> None:
    # A port per run: a rank may finish a run while the other still listens.
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in runs]
    ports = [each.getsockname()[1] for each in listening]
    for each in listening:
        each.close()
    mp.spawn(work, (ports, runs), nprocs=2)


def cls_run(scenes: Path, output_dir: Path, *more: str) -> tuple[str, list[str]]:
    return "cls", [
        *(f"--{key}={scenes}" for key in ("data_path", "eval_data_path", "test_data_path")),
        *("--in_domains", "rgb-depth", "--nb_classes", "2", "--output_dir", str(output_dir)),
        *("--model", "multivit_nano", "--input_size", "32", "--patch_size", "8", *ON_CPU),
        *("--epochs", "1", "--warmup_epochs", "0", "--batch_size", "2", "--log_every", "1"),
        *("--num_workers", "0", "--num_pictures", "0", "--lr", "0.01"),
        *("--model_ema", "--model_ema_decay", "0.5", *more),
    ]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, in their folders."""
    root = tmp_path_factory.mktemp("fsdp")
    scenes, unseen = write_scenes(root / "train", 12), write_scenes(root / "val", 6, 1000)
    scored = ("--eval_data_path", str(unseen), "--eval_freq", "7", "--num_pictures", "1")

    def run(name: str, *more: str) -> tuple[str, list[str]]:
        return "pretrain", tiny_run(scenes, root / name, *more)

    run_pretraining_multimae.main(run("one", *TWENTY, *scored)[1])
    go_on(root, "one", "one to fsdp")
    two = (*TWENTY, *scored, "--batch_size", "2")
    in_two_processes(
        run("ddp", *two),
        run("fsdp", *two, *FSDP),
        run("one to fsdp", *two, *FSDP, "--max_steps", "14"),
        run("halves ddp", *HALVES),
        run("halves fsdp", *HALVES, *FSDP),
        run("bf16 ddp", *LOW, "--precision", "bf16"),
        run("bf16 fsdp", *LOW, "--precision", "bf16", *FSDP,
            "--fp32_output_adapters", "semseg"),
        run("fp16 fsdp", *LOW, "--precision", "fp16", *FSDP),
        cls_run(scenes, root / "cls ddp"),
        cls_run(scenes, root / "cls fsdp", *FSDP),
    )  # fmt: skip
    go_on(root, "fsdp", "fsdp to one")
    run_pretraining_multimae.main(run("fsdp to one", *TWENTY, *scored, "--max_steps", "14")[1])
    return root


def go_on(root: Path, source: str, name: str) -> None:
    """A run that begins with the third epoch's checkpoint of another."""
    file = "checkpoints/checkpoint-3.pth"
    (root / name / file).parent.mkdir(parents=True)
    shutil.copy(root / source / file, root / name / file)


def assert_alike(a: Path, b: Path, steps: int, rel: float = 1e-5) -> None:
    first, second = ({row["step"]: row for row in rows(folder)} for folder in (a, b))
    both = sorted(first.keys() & second.keys())
    assert len(both) == steps
    for step in both:
        for key in set(LOSSES) & first[step].keys():
            assert second[step][key] == pytest.approx(first[step][key], rel=rel), (step, key)


def assert_numbers(a: dict[str, Any], b: dict[str, Any], rel: float) -> None:
    assert a.keys() == b.keys()
    numbers = {key: value for key, value in a.items() if isinstance(value, float)}
    assert {key: b[key] for key in numbers} == pytest.approx(numbers, rel=rel)


def test_fsdp_matches_ddp(out: Path) -> None:
    assert_alike(out / "ddp", out / "fsdp", steps=20)
    copies, shares = (weights(out / name) for name in ("ddp", "fsdp"))
    assert [(k, v.shape, v.dtype) for k, v in copies.items()] == [
        (k, v.shape, v.dtype) for k, v in shares.items()
    ]
    # Evaluators run on the gathered model.
    a, b = rows(out / "ddp", "eval")[-1], rows(out / "fsdp", "eval")[-1]
    assert_numbers(a, b, rel=1e-4)
    assert list((out / "fsdp/pictures").iterdir())


@pytest.mark.parametrize("name", ["one to fsdp", "fsdp to one"])
def test_run_resumes_with_another_parallelism(out: Path, name: str) -> None:
    assert_alike(out / "one", out / name, steps=5)
    assert rows(out / name)[0]["step"] == 10


def test_checkpoint_format_does_not_depend_on_parallelism(out: Path) -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.shape, value.dtype
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return list(map(shape, value)) if isinstance(value, list | tuple) else type(value)

    one, two = (
        torch.load(out / name / "checkpoints/checkpoint-6.pth", weights_only=True)
        for name in ("one", "fsdp")
    )
    for contents in (one, two):
        del contents["config"], contents["rng"]
    assert shape(one) == shape(two)


def test_gradients_are_synced_once_per_step_and_clipped_alike(out: Path) -> None:
    assert_alike(out / "halves ddp", out / "halves fsdp", steps=3)
    assert rows(out / "halves fsdp")[0]["grad_norm"] > 0.05
    times = {p.name: int((p / "exchanges").read_text()) for p in out.iterdir() if p.is_dir()
             and (p / "exchanges").exists()}  # fmt: skip
    # Two blocks, four decoders and the rest, in three updates; DDP has one bucket or two.
    assert times["halves fsdp"] == 7 * 3
    # With a static graph, the first step synchronises after both micro-batches.
    assert 4 <= times["halves ddp"] <= 2 * 4


def test_low_precision_fsdp_matches_ddp(out: Path) -> None:
    assert_alike(out / "bf16 ddp", out / "bf16 fsdp", steps=3, rel=0.02)
    for a, b in zip(rows(out / "bf16 ddp"), rows(out / "fp16 fsdp"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.02)


def test_fine_tuning_with_ema_best_and_test(out: Path) -> None:
    assert_alike(out / "cls ddp", out / "cls fsdp", steps=3)
    a, b = (rows(out / name, "eval") for name in ("cls ddp", "cls fsdp"))
    assert len(a) == 2
    assert "test/acc1" in a[-1]
    for copies, shares in zip(a, b, strict=True):
        assert_numbers(copies, shares, rel=1e-5)
    for file in ("checkpoint-best.pth", "checkpoint-1.pth"):
        one, two = (
            torch.load(out / name / "checkpoints" / file, weights_only=True)
            for name in ("cls ddp", "cls fsdp")
        )
        for part in {"model", "model_ema"} & one.keys():
            for key, value in one[part].items():
                torch.testing.assert_close(two[part][key], value, rtol=0.01, atol=1e-4)


def test_ema_on_the_cpu_is_an_error() -> None:
    with pytest.raises(ConfigError, match="model_ema_force_cpu: parallel fsdp"):
        parse_config(ClsConfig, [*FSDP, "--model_ema_force_cpu", "--model_ema"])
