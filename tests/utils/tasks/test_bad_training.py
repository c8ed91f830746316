"""Training and evaluation with bad samples."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multimae.specs.modalities import make_table, select
from tests.support.image_folders import message_of, save
from tests.support.prepared import WORLD
from tests.support.scenes import tiny_run, write_scenes
from tests.utils.tasks.test_bad_finetuning import OWN
from tests.utils.tasks.test_finetuning_taskonomy import write_taskonomy
from tools.probing.probe_options import ProbeDataOptions
from utils.config.cls_options import ClsConfig
from utils.config.depth_options import DepthConfig
from utils.config.finetune_options import FinetuneConfig
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.config.semseg_options import SemsegConfig
from utils.config.taskonomy_options import TaskonomyConfig
from utils.data.batches import BadSample, collate
from utils.data.samplers import SampleKey
from utils.data.sets.class_folders import mix
from utils.logs.logger import RunLogger
from utils.tasks.base import StepPosition
from utils.tasks.classification import ClassificationFinetuning
from utils.tasks.depth_estimation import DepthFinetuning
from utils.tasks.finetuning import Finetuning
from utils.tasks.pretraining import PretrainTask, build_task, build_train_set, run_modalities
from utils.tasks.reconstruction import build_evaluators
from utils.tasks.segmentation import SegmentationFinetuning
from utils.tasks.taskonomy import TaskonomyFinetuning
from utils.training.seeding import MaskOptions
from utils.training.stepper import choose_precision


def pretrain_task(root: Path = Path("nowhere")) -> PretrainTask:
    cfg = parse_config(PretrainConfig, tiny_run(root, ""))
    table = cfg.table()
    return build_task(cfg, select(table, cfg.in_names), select(table, cfg.out_names))


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("kept", [(0, 2, 3), (3,), (), (0, 1, 2, 3)])
def test_masks_do_not_depend_on_skipped_samples(first: int, kept: tuple[int, ...]) -> None:
    task = pretrain_task()
    layout = task.model.layout({m.name: (32 // m.stride,) * 2 for m in task.inputs})
    options, position, cpu = MaskOptions(12, seed=7), StepPosition(5, first, 8), torch.device("cpu")
    whole = options.draw(layout, position, 4, cpu)
    part = options.draw(layout, position, 4, cpu, kept)
    assert torch.equal(part.ids_keep, whole.ids_keep[list(kept)])
    assert torch.equal(part.ids_restore, whole.ids_restore[list(kept)])
    for name, mask in whole.task_masks.items():
        assert torch.equal(part.task_masks[name], mask[list(kept)])


def test_training_step_selects_the_masks_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks and losses of the good samples equal those of the complete batch."""
    task = pretrain_task(write_scenes(tmp_path, 8))
    cfg = parse_config(PretrainConfig, tiny_run(tmp_path, "", "--on_bad_sample", "skip"))
    data = build_train_set(cfg, task.modalities)
    seen = []
    forward = task.model.forward_patches

    def watched(*args: Any) -> Any:
        seen.append(forward(*args))
        return seen[-1]

    monkeypatch.setattr(task.model, "forward_patches", watched)
    keys, position = [SampleKey(0, i) for i in range(4)], StepPosition(3, 4, 8)
    task(collate([data[key] for key in keys]), position)
    data.folder.path(1, task.inputs[0]).write_bytes(b"")
    batch = collate([data[key] for key in keys])
    assert batch.sample_indices == (0, 2, 3)
    assert task(batch, position).loss.isfinite()
    whole, part = seen
    kept = [0, 2, 3]
    for name, mask in whole.masks.task_masks.items():
        assert torch.equal(part.masks.task_masks[name], mask[kept])
    for name, patches in whole.patches.items():
        torch.testing.assert_close(part.patches[name], patches[kept], rtol=1e-4, atol=1e-5)


def test_constant_baseline_skips_bad_samples(tmp_path: Path) -> None:
    train, val = write_scenes(tmp_path / "train", 8), write_scenes(tmp_path / "val", 4, 50)
    (train / "rgb/a/000.jpg").write_bytes(b"")
    more = ("--eval_data_path", str(val), "--on_bad_sample", "skip", "--num_pictures", "0")
    cfg = parse_config(PretrainConfig, tiny_run(train, "", "--batch_size", "1", *more))
    task = build_task(cfg, *run_modalities(cfg))
    data = build_train_set(cfg, task.modalities)
    precision = choose_precision("fp32", WORLD.device)
    with RunLogger(cfg.log, "", {}, is_main=True) as logger:
        evaluate = partial(build_evaluators, cfg, str(val), task, data, WORLD, precision, logger)
        (evaluator,) = evaluate()
        values = evaluator.run(task.model, 0)
        assert np.isfinite(list(values.values())).all()
        for path in (train / "rgb").rglob("*.jpg"):
            path.write_bytes(b"")
        assert "none of the training samples" in message_of(evaluate)
        (val / "rgb/a/000.jpg").write_bytes(b"")
        assert str(val / "rgb/a/000.jpg") in message_of(evaluate)


ROWS = [make_table({"semseg": {"num_classes": 9}})[name] for name in ("rgb", "depth", "semseg")]


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_an_odd_batch(kind: str, mode: str, size: int) -> None:
    """The middle sample is unchanged; all other pairs are mixed."""
    from timm.data.mixup import Mixup

    on = {"mixup_alpha": 0.8} if kind == "mixup" else {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}
    mixup = Mixup(**on, mode=mode, label_smoothing=0.1, num_classes=9)
    torch.manual_seed(0)
    x = {"rgb": torch.rand(size, 3, 16, 16), "depth": torch.rand(size, 1, 16, 16)}
    x["semseg"] = torch.randint(9, (size, 4, 4))
    target, middle = torch.arange(size), size // 2
    before = {name: value.clone() for name, value in x.items()}
    mixed, soft = mix(mixup, x, target, ROWS)
    smooth = torch.nn.functional.one_hot(target, 9) * 0.9 + 0.1 / 9
    torch.testing.assert_close(soft[middle], smooth[middle])
    assert soft.shape == (size, 9)
    for name in before:
        assert mixed[name].shape == before[name].shape
        torch.testing.assert_close(mixed[name][middle], before[name][middle])
    if mode != "elem":
        torch.testing.assert_close(soft + soft.flip(0), smooth + smooth.flip(0))
        for name in ("rgb", "depth"):
            both, were = (v[name] + v[name].flip(0) for v in (mixed, before))
            torch.testing.assert_close(both, were)


JOBS: dict[str, tuple[type[FinetuneConfig], type[Finetuning], str]] = {
    "cls": (ClsConfig, ClassificationFinetuning, "rgb/a/000.jpg"),
    "semseg": (SemsegConfig, SegmentationFinetuning, "semseg/a/000.png"),
    "depth": (DepthConfig, DepthFinetuning, "depth/a/000.png"),
    "taskonomy": (TaskonomyConfig, TaskonomyFinetuning, ""),
}


def spoiled_job(name: str, root: Path, *more: str) -> tuple[Any, Path]:
    """Fine-tuning with a bad first training sample, and its file."""
    kind, job, file = JOBS[name]
    where = ["--data_path", str(root / "train"), "--eval_data_path", str(root / "val")]
    if name == "taskonomy":
        where = ["--data_path", str(write_taskonomy(root, buildings=5, views=2))]
        path = root / "depth_zbuffer/building0/point_0_view_0_domain_depth_zbuffer.png"
        save(path, np.full((40, 48), 65535, np.uint16))
    else:
        write_scenes(root / "val", 4, first_seed=100)
        path = write_scenes(root / "train", 8) / file
        if name == "cls":
            path.write_bytes(b"")
        else:
            save(path, np.zeros((40, 40), np.uint16 if name == "depth" else np.uint8))
    arguments = [
        *where, *OWN[name], "--model", "multivit_nano", "--input_size", "32", "--patch_size", "8",
        *("--num_pictures", "0", "--warmup_epochs", "0", "--num_workers", "0", *more),
    ]  # fmt: skip
    return job(parse_config(kind, arguments), WORLD), path  # type: ignore[call-arg]


@pytest.mark.parametrize("name", JOBS)
def test_fine_tuning_sets(name: str, tmp_path: Path) -> None:
    strict, path = spoiled_job(name, tmp_path)
    assert str(path) in message_of(strict.train_set)
    job, path = spoiled_job(name, tmp_path, "--on_bad_sample", "skip")
    data = job.train_set()
    (bad,) = data.known_bad
    assert str(path) in bad.problem
    samples = [data[SampleKey(0, i)] for i in range(len(data))]
    assert samples[0] == bad and not any(isinstance(s, BadSample) for s in samples[1:])
    few, _ = spoiled_job(name, tmp_path, "--on_bad_sample", "skip", "--max_bad_samples", "0")
    assert "more than max_bad_samples 0" in message_of(few.train_set)


@pytest.mark.parametrize("name", JOBS)
def test_evaluation_rejects_bad_samples(name: str, tmp_path: Path) -> None:
    job, path = spoiled_job(name, tmp_path, "--on_bad_sample", "skip")
    task, precision = job.build_task(), choose_precision("fp32", WORLD.device)
    with RunLogger(job.cfg.log, "", {}, is_main=True) as logger:
        assert job.evaluators("eval", task, precision, logger)
        if name == "taskonomy":
            bad = next((tmp_path / "rgb/building4").iterdir())
        else:
            bad = tmp_path / "val/rgb/b/001.jpg"
        content = bad.read_bytes()
        bad.write_bytes(b"")
        assert str(bad) in message_of(job.evaluators, "eval", task, precision, logger)
        bad.write_bytes(content)
        if name == "cls":  # of one modality: no other says what should be there
            return
        bad.unlink()
        assert bad.stem.partition("_domain")[0] in message_of(
            job.evaluators, "eval", task, precision, logger
        )


def test_probe_rejects_bad_samples() -> None:
    options = ProbeDataOptions(data_path="a", eval_data_path="b", on_bad_sample="skip")
    assert any("on_bad_sample" in problem for problem in options.problems())
