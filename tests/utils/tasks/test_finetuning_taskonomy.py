"""Taskonomy fine-tuning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import run_finetuning_taskonomy
from multimae.inference.truth import valid_taskonomy
from tests.support.image_folders import message_of, save
from tests.support.scenes import ON_CPU
from utils.config.parse import parse_config
from utils.config.taskonomy_options import TaskonomyConfig
from utils.data.batches import Batch
from utils.data.samplers import SampleKey
from utils.data.sets.taskonomy_views import (
    TASKS,
    TaskonomyFolder,
    buildings_of,
    listed_views,
)
from utils.distributed.world import World
from utils.tasks.regression import Target
from utils.tasks.taskonomy import TaskonomyFinetuning, TaskonomyTask

WIDE = ("depth_zbuffer", "depth_euclidean", "edge_texture", "edge_occlusion", "keypoints2d")
COLOURED = ("rgb", "normal", "principal_curvature", "reshading")


def write_taskonomy(root: Path, buildings: int = 5, views: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for b in range(buildings):
        for v in range(views):
            name = f"building{b}/point_{v}_view_0_domain_"
            for task in WIDE:
                save(root / task / f"{name}{task}.png", rng.integers(0, 9000, (40, 48), np.uint16))
            for task in COLOURED:
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                save(root / task / f"{name}{task}.png", pixels)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taskonomy(tmp_path_factory.mktemp("taskonomy"))


def arguments(data: Path, output_dir: Path | str, *more: str) -> list[str]:
    return [
        *("--data_path", str(data), "--output_dir", str(output_dir), "--model", "multivit_nano"),
        *("--input_size", "32", "--patch_size", "8", "--batch_size", "4", "--epochs", "1"),
        *("--warmup_epochs", "0", "--num_workers", "0", "--lr", "1e-3", *ON_CPU),
        *("--num_pictures", "2", "--log_every", "1", *more),
    ]


def test_every_task_is_trained_and_evaluated(data: Path, tmp_path: Path) -> None:
    tasks = ("normal", "reshading", "principal_curvature", "edge_texture", "depth_euclidean")
    run_finetuning_taskonomy.main(
        arguments(data, tmp_path, "--out_domains", "-".join(tasks), "--freeze_transformer")
    )
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scores = log[-1]
    errors = [scores[f"eval/l1/{task}"] for task in tasks]
    assert np.isfinite(errors).all() and scores["eval/l1"] == pytest.approx(np.mean(errors))
    assert {f"loss/{task}" for task in tasks} <= log[0].keys()
    assert list((tmp_path / "pictures").glob("predictions_eval-*.png"))
    run_finetuning_taskonomy.main(
        arguments(data, tmp_path, "--out_domains", "-".join(tasks), "--eval")
    )
    scored = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert scored["eval/l1"] == pytest.approx(scores["eval/l1"], rel=1e-6)


def test_targets_follow_the_specification() -> None:
    raw = torch.tensor([[[[0, 4000, 8000, 9000, 65535]]]], dtype=torch.int32)
    depth = Target("d", *TASKS["depth_zbuffer"]).prepare(raw)
    assert torch.allclose(depth, torch.tensor([[[[0, 0.5, 1, 1, 1]]]]))
    edges = Target("e", *TASKS["edge_texture"]).prepare(raw)
    assert torch.allclose(edges, (raw / (0.25 * 65535)).clamp(max=1).float())
    assert torch.allclose(Target("k", *TASKS["keypoints2d"]).prepare(raw), raw / 65535)
    colours = torch.randint(0, 256, (1, 3, 2, 2), dtype=torch.uint8)
    curvature = Target("c", *TASKS["principal_curvature"]).prepare(colours)
    assert torch.allclose(curvature, colours[:, :2] / 255)
    assert Target("r", *TASKS["reshading"]).prepare(colours).shape == (1, 1, 2, 2)


def test_a_block_counts_only_if_all_its_pixels_are_valid() -> None:
    depth = torch.full((1, 1, 20, 20), 1000)
    depth[0, 0, 10, 10] = 65535
    valid = valid_taskonomy(depth, None)
    expected = torch.ones(20, 20, dtype=torch.bool)
    expected[8:12, 8:12] = False
    assert torch.equal(valid[0, 0], expected)


def test_splits(data: Path, tmp_path: Path) -> None:
    subsets = [buildings_of(data, subset) for subset in ("train", "val", "test")]  # type: ignore[arg-type]
    assert sorted(name for s in subsets for name in s) == [f"building{i}" for i in range(5)]
    assert all(subsets)
    table = tmp_path / "split.csv"
    table.write_text("id,train,val,test\nbuilding0,1,0,0\nbuilding3,0,0,1\n")
    assert buildings_of(data, "test", str(table)) == {"building3"}
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
    assert "columns id" in message_of(buildings_of, data, "val", str(tmp_path / "wrong.csv"))
    root = tmp_path / "listed"
    root.mkdir()
    (root / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"]}))
    assert buildings_of(root, "val") == {"b"}


def test_official_evaluation_buildings_are_never_trained_on(tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a", "ihlen", "darden"]}))
    assert buildings_of(tmp_path, "train") == {"a"}
    (tmp_path / "splits.json").unlink()
    for name in ("a", "b", "uvalda", "corozal"):
        (tmp_path / "rgb" / name).mkdir(parents=True)
    found = [buildings_of(tmp_path, subset) for subset in ("train", "val", "test")]  # type: ignore[arg-type]
    assert found == [{"a", "b"}, {"corozal"}, {"uvalda"}]


def test_image_lists_and_their_first_views(data: Path, tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("building,point,view\nbuilding1,3,0\nbuilding1,0,0\n")
    views = listed_views(tmp_path, "val")
    assert views == ["building1/point_3_view_0", "building1/point_0_view_0"]
    rows = [TASKS["rgb"][0]]
    folder = TaskonomyFolder(data, rows, frozenset({"building1"}), 1, views=views)
    assert [folder.name(i) for i in range(len(folder))] == views[:1]
    assert listed_views(tmp_path, "train") is None


def test_edge_occlusion_is_blurred() -> None:
    raw = torch.zeros(1, 1, 5, 5)
    raw[0, 0, 2, 2] = 65535
    task = TaskonomyTask.__new__(TaskonomyTask)
    torch.nn.Module.__init__(task)
    task.targets = (Target("edge_occlusion", *TASKS["edge_occlusion"]),)
    (blurred,) = task.truth(Batch({"edge_occlusion": raw}, ["a"])).values()
    weights = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / 2)
    weights /= weights.sum()
    torch.testing.assert_close(blurred[0, 0, 1:4, 1:4], weights[:, None] * weights)


def test_views_are_paired_by_name_and_spread(data: Path, tmp_path: Path) -> None:
    rows = [TASKS["rgb"][0], TASKS["normal"][0]]
    buildings = frozenset(f"building{i}" for i in range(5))
    few = TaskonomyFolder(data, rows, buildings, limit=5)
    assert len(few) == 5 and [few.name(i).split("/")[0][-1] for i in range(5)] == list("00001")
    assert few.path(0, rows[1]).name == "point_0_view_0_domain_normal.png"
    root = write_taskonomy(tmp_path / "copy", buildings=3, views=2)
    (root / "normal/building1/point_1_view_0_domain_normal.png").unlink()
    message = message_of(TaskonomyFolder, root, rows, buildings)
    assert "'normal'" in message and "building1/point_1_view_0" in message
    assert "no view" in message_of(TaskonomyFolder, data, rows, frozenset({"elsewhere"}))


def taskonomy_job(data: Path, *more: str) -> TaskonomyFinetuning:
    cfg = parse_config(TaskonomyConfig, arguments(data, "", *more))
    return TaskonomyFinetuning(cfg, World(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("valid", [255, 1])
def test_mask_valid_replaces_the_z_buffer(tmp_path: Path, valid: int) -> None:
    root = write_taskonomy(tmp_path / "data", buildings=3, views=2)
    mask = np.full((40, 48), valid, np.uint8)
    mask[16, 25] = 0  # pixel 13, 17 of the model's 32 x 32
    for path in list(root.glob("depth_zbuffer/*/*.png")):
        save(root / "mask_valid" / path.relative_to(root / "depth_zbuffer"), mask)
    shutil.rmtree(root / "depth_zbuffer")
    job = taskonomy_job(root, "--out_domains", "normal")
    assert [m.name for m in job.modalities if m.plot == "scalar"] == ["mask_valid"]
    for dataset in (job.train_set(), job.eval_set("eval")):
        sample = dataset[SampleKey(0, 0)]
        batch = Batch({k: v[None] for k, v in sample.images.items()}, [sample.name])
        expected = torch.ones(32, 32, dtype=torch.bool)
        expected[12:16, 16:20] = False  # its block of 4 x 4
        assert torch.equal(job.build_task().valid(batch)[0, 0], expected)
    for value, named in ((0, "no pixel of mask_valid is 255"), (200, "has 200")):
        for path in root.glob("mask_valid/*/*.png"):
            save(path, np.full((40, 48), value, np.uint8))
        assert named in message_of(job.train_set)


@pytest.mark.parametrize("test_set", [False, True])
def test_the_z_buffer_counts_if_a_split_has_no_mask_valid(tmp_path: Path, test_set: bool) -> None:
    root = write_taskonomy(tmp_path / "data", buildings=3, views=2)
    more = ()
    if test_set:
        (root / "mask_valid").mkdir()
        more = ("--test_data_path", str(write_taskonomy(tmp_path / "test", 3, 1)))
    job = taskonomy_job(root, "--out_domains", "normal", *more)
    assert [m.name for m in job.modalities if m.plot == "scalar"] == ["depth_zbuffer"]


def test_training_images_are_bilinear_centre_crops_without_augmentation(data: Path) -> None:
    job = taskonomy_job(data, "--out_domains", "normal")
    train = job.train_set()
    for epoch in (0, 1, 7):
        sample = train[SampleKey(epoch, 0)]
        path = train.folder.path(0, job.inputs[0])
        with Image.open(path) as photo:
            square = photo.crop((4, 0, 44, 40)).resize((32, 32), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)
        assert (sample.images["rgb"].int() - expected.int()).abs().max() <= 1


def test_image_lists_select_the_views_of_every_split(tmp_path: Path) -> None:
    root = write_taskonomy(tmp_path / "data", buildings=3, views=2)
    names = {s: sorted(buildings_of(root, s))[0] for s in ("train", "val", "test")}  # type: ignore[arg-type]
    for subset, building in names.items():
        (root / f"{subset}.csv").write_text(f"building,point,view\n{building},1,0\n")
    job = taskonomy_job(root, "--out_domains", "normal", "--batch_size", "1")
    for subset, dataset in {
        "train": job.train_set(), "val": job.eval_set("eval"), "test": job.eval_set("test")
    }.items():  # fmt: skip
        found = [dataset.name(i) for i in range(len(dataset))]
        assert found == [f"{names[subset]}/point_1_view_0"]


def test_unknown_task(data: Path) -> None:
    message = message_of(
        run_finetuning_taskonomy.main, arguments(data, "", "--out_domains", "normals")
    )
    assert "unknown task 'normals'; did you mean normal?" in message
