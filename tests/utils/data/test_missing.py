"""Samples with missing modalities: masks, losses, evaluation, and a complete run."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import run_pretraining_multimae
from multimae.images.folders import MultiModalFolder
from multimae.multimae import MultiMAE
from multimae.nn.masking import sample_masks
from multimae.nn.tokens import TokenLayout
from multimae.specs.errors import UserError
from multimae.specs.modalities import make_table, select
from multimae.specs.spec import ModelSpec
from tests.support.scenes import NUM_CLASSES, tiny_run, write_scenes
from tools.report.run_log import read_log
from utils.data.batches import BadSample, Sample, collate
from utils.data.dataset import MultiModalDataset
from utils.data.samplers import SampleKey
from utils.data.transforms import EvalTransform
from utils.tasks.base import StepPosition
from utils.tasks.pretraining import PretrainTask, Targets
from utils.tasks.reconstruction import ConstantBaseline, fixed_masks
from utils.training.seeding import MaskOptions, generator

NAMES = ("rgb", "depth", "semseg")
TABLE = make_table({"semseg": {"num_classes": NUM_CLASSES}, "depth": {"normalization": "robust"}})
INPUTS = select(TABLE, NAMES)
OUTPUTS = [*INPUTS, TABLE["norm_rgb"]]
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(NAMES, n)]
LAYOUT = TokenLayout.from_grids((32, 32), dict.fromkeys(NAMES, (4, 4)), 1)


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen scenes; the first seven have the different subsets of modalities, the others all."""
    root = write_scenes(tmp_path_factory.mktemp("holes"), 14)
    for i, subset in enumerate(SUBSETS):
        for name in set(NAMES) - set(subset):
            next((root / name / "ab"[i % 2]).glob(f"{i:03d}.*")).unlink()
    return root


def dataset_of(root: Path) -> MultiModalDataset:
    folder = MultiModalFolder(root, INPUTS, allow_missing=True)
    return MultiModalDataset(folder, EvalTransform(INPUTS, 32), patch_size=8)


def task_of() -> PretrainTask:
    torch.manual_seed(0)
    spec = ModelSpec("pretrain_multimae_nano", tuple(INPUTS), tuple(OUTPUTS), 8, 32)
    spec = dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, dim=32, num_heads=4))
    return PretrainTask(MultiMAE.from_spec(spec), INPUTS, OUTPUTS, 8, MaskOptions(12))


def test_complete_samples_keep_their_masks_and_others_their_budget() -> None:
    there = torch.rand(64, 3, generator=torch.Generator().manual_seed(1)) > 0.3
    there[~there.any(dim=1), 0] = True
    present = {name: there[:, i] for i, name in enumerate(NAMES)}
    seeded = {"alphas": 0.2, "sample_tasks_uniformly": True}
    plain, drawn = (
        sample_masks(LAYOUT, 64, 12, generator=generator("cpu", 5), present=p, **seeded)
        for p in (None, present)
    )
    complete = there.all(dim=1)
    assert 5 < complete.sum() < 40
    for name in NAMES:
        assert torch.equal(drawn.task_masks[name][complete], plain.task_masks[name][complete])
        assert drawn.task_masks[name][~present[name]].all(), "missing modalities are masked"
    assert torch.equal(drawn.ids_keep[complete], plain.ids_keep[complete])
    visible = sum((drawn.task_masks[name] == 0).sum(dim=1) for name in NAMES)
    assert (visible == 12).all()
    everything = {name: torch.ones(64, dtype=torch.bool) for name in NAMES}
    same = sample_masks(LAYOUT, 64, 12, generator=generator("cpu", 5), present=everything, **seeded)
    assert torch.equal(same.ids_restore, plain.ids_restore)


def test_masks_do_not_depend_on_processes_or_bad_samples() -> None:
    present = {"depth": torch.tensor([True, False, True, False])}
    options, cpu = MaskOptions(12, seed=3), torch.device("cpu")
    whole = options.draw(LAYOUT, StepPosition(7, 0, 4), 4, cpu, present=present)
    for row in range(4):
        one = {"depth": present["depth"][row : row + 1]}
        alone = options.draw(LAYOUT, StepPosition(7, row, 4), 1, cpu, present=one)
        assert torch.equal(alone.ids_keep[0], whole.ids_keep[row])
    some = {"depth": present["depth"][[0, 3]]}
    left = options.draw(LAYOUT, StepPosition(7, 0, 4), 4, cpu, kept=(0, 3), present=some)
    assert torch.equal(left.ids_keep, whole.ids_keep[[0, 3]])
    fixed = fixed_masks(LAYOUT, [4, 9], options, cpu, {"rgb": torch.tensor([True, False])})
    plain = fixed_masks(LAYOUT, [4, 9], options, cpu)
    assert fixed.task_masks["rgb"][1].all() and torch.equal(fixed.ids_keep[0], plain.ids_keep[0])


def test_missing_modalities_have_no_loss_and_gradient(holes: Path) -> None:
    dataset, task = dataset_of(holes), task_of()
    samples = [dataset[SampleKey(0, i)] for i in range(len(dataset))]
    batch = collate(samples)
    assert set(batch.present) == set(NAMES) and (~batch.present["rgb"]).sum() == 3
    position = StepPosition(0, 0, len(batch))
    out = task(batch, position)
    out.loss.backward()
    gradients = [p.grad for p in task.parameters() if p.grad is not None]
    assert out.loss.isfinite() and all(g.isfinite().all() for g in gradients)
    # Values of missing modalities have no effect.
    for name, there in batch.present.items():
        stored = batch.images[name].numpy()
        stored[~there.numpy()] = stored[there.numpy()][:1]
    again = task(batch, position)
    for name, value in out.logs.items():
        torch.testing.assert_close(again.logs[name], value)
    torch.testing.assert_close(again.loss, out.loss)


def test_modality_missing_in_a_whole_batch_has_zero_loss(holes: Path) -> None:
    dataset, task = dataset_of(holes), task_of()
    alone = [s for i in range(14) if set(dataset[SampleKey(0, i)].absent) == {"depth", "semseg"}
             for s in [dataset[SampleKey(0, i)]]]  # fmt: skip
    for masks_only in (True, False):
        task.loss_on_unmasked = not masks_only
        out = task(collate(alone), StepPosition(0, 0, len(alone)))
        assert out.logs["loss/depth"] == out.logs["loss/semseg"] == 0 < out.logs["loss/rgb"]
        out.loss.backward()
    assert isinstance(alone[0], Sample)
    mixed = collate([BadSample("x", "y"), *alone])
    out = task(mixed, StepPosition(0, 0, len(alone) + 1))
    assert out.loss.isfinite()


def test_constant_baseline_ignores_missing_modalities(holes: Path) -> None:
    dataset, task = dataset_of(holes), task_of()
    batches = [collate([dataset[SampleKey(0, i)]]) for i in range(14)]
    fitted = ConstantBaseline(task, batches).constants
    there = [b for b in batches if "rgb" not in b.present]
    pixels = torch.cat(
        [Targets.from_batch(b, task.modalities).x["rgb"].flatten(2)[0] for b in there], dim=1
    )
    torch.testing.assert_close(fitted["rgb"], pixels.mean(dim=1), rtol=1e-4, atol=1e-5)
    assert fitted["semseg"].isfinite().all()


def test_a_run_evaluates_on_every_subset(holes: Path, tmp_path: Path) -> None:
    flags = ("--missing", "allow", "--eval_data_path", str(holes), "--batch_size", "7")
    run_pretraining_multimae.main(tiny_run(holes, tmp_path, *flags))
    rows = read_log(tmp_path)
    (last,) = [r for r in rows if r["kind"] == "eval"][-1:]
    for name in (m.name for m in OUTPUTS):
        assert math.isfinite(last[f"eval/{name}"]) and math.isfinite(last[f"trivial/{name}"])
    assert all(math.isfinite(v) for r in rows for v in r.values() if isinstance(v, float))


def test_complete_data_trains_the_same_with_and_without(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "data", 8)
    logs = []
    for mode in ("error", "allow"):
        out = tmp_path / mode
        run_pretraining_multimae.main(tiny_run(root, out, "--missing", mode))
        logs.append([r["loss"] for r in read_log(out) if r["kind"] == "train"])
    assert logs[0] == logs[1] and len(logs[0]) == 4


def test_errors(holes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not match between the modalities"):
        run_pretraining_multimae.main(tiny_run(holes, ""))
    with pytest.raises(UserError, match="fewer than num_encoded_tokens 40"):
        run_pretraining_multimae.main(
            tiny_run(holes, "", "--missing", "allow", "--num_encoded_tokens", "40")
        )
    shutil.copytree(holes / "depth", tmp_path / "depth")
    for name in ("rgb", "semseg"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="no images in"):
        MultiModalFolder(tmp_path, INPUTS, allow_missing=True)
    patterns = MultiModalFolder(holes, INPUTS, allow_missing=True).patterns()
    assert set(patterns) == set(SUBSETS)
    assert np.array_equal(sorted(patterns.values()), sorted(set(patterns.values())))


def test_missing_study_drops_files_and_prints_a_table(tmp_path: Path) -> None:
    from tools.missing_study import link_with_missing, table

    root = write_scenes(tmp_path / "data", 40)
    share = link_with_missing(root, tmp_path / "holes", 0.3, seed=0)
    folder = MultiModalFolder(tmp_path / "holes", INPUTS, allow_missing=True)
    there = sum(folder.has(i, m) for i in range(len(folder)) for m in INPUTS)
    assert len(folder) == 40 and there == round((1 - share) * 120) and 0.2 < share < 0.4
    runs = [{"eval/a": 1.0, "trivial/a": 9.0}, {"eval/a": 3.0, "trivial/a": 9.0}]
    text = table({"complete": runs, "incomplete": runs})
    assert "2.0000 +- 1.4142" in text and "+0.0 sd" in text and "9.0000" in text
