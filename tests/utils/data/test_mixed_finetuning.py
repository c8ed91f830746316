"""Fine-tuning on several folders, in all four scripts."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import run_finetuning_cls
import run_finetuning_depth
import run_finetuning_semseg
import run_finetuning_taskonomy
from multimae.specs.errors import UserError
from tests.support.image_folders import message_of, save
from tests.support.scenes import ON_CPU, write_scenes
from utils.config.cls_options import ClsConfig
from utils.config.depth_options import DepthConfig
from utils.config.parse import parse_config
from utils.config.semseg_options import SemsegConfig
from utils.config.taskonomy_options import TaskonomyConfig
from utils.data.sets.class_weights import balanced_weights
from utils.distributed.world import World
from utils.tasks.classification import ClassificationFinetuning
from utils.tasks.depth_estimation import DepthFinetuning
from utils.tasks.finetuning import Finetuning
from utils.tasks.segmentation import SegmentationFinetuning
from utils.tasks.taskonomy import TaskonomyFinetuning

ALONE = World(0, 1, torch.device("cpu"))
Main = Callable[[Sequence[str]], None]
DENSE = ["--decoder_dim", "64", "--decoder_depth", "1", "--decoder_preds_per_patch", "4"]
OPTIONS = {
    "cls": ["--nb_classes", "2", "--mixup", "0", "--cutmix", "0", "--aa", "none"],
    "depth": [*DENSE, "--max_train_images", "null"],
    "semseg": [*DENSE, "--num_classes", "4", "--seg_reduce_zero_label"],
    "taskonomy": ["--max_train_images", "null", "--out_domains", "normal"],
}
SCRIPTS: dict[str, tuple[Main, type[Any], type[Finetuning[Any]]]] = {
    "cls": (run_finetuning_cls.main, ClsConfig, ClassificationFinetuning),
    "depth": (run_finetuning_depth.main, DepthConfig, DepthFinetuning),
    "semseg": (run_finetuning_semseg.main, SemsegConfig, SegmentationFinetuning),
    "taskonomy": (run_finetuning_taskonomy.main, TaskonomyConfig, TaskonomyFinetuning),
}


def write_views(root: Path, views: int) -> Path:
    """Taskonomy views in three buildings."""
    rng = np.random.default_rng(0)
    for v in range(3 * views):
        name = f"building{v % 3}/point_{v}_view_0_domain_"
        save(root / f"depth_zbuffer/{name}depth_zbuffer.png", rng.integers(1, 99, (40, 48), "u2"))
        for task in ("rgb", "normal"):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            save(root / task / f"{name}{task}.png", pixels)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    for name, count, seed in (("near", 6, 0), ("far", 10, 50), ("val", 5, 100)):
        write_scenes(root / name, count, seed)
        write_views(root / "views" / name, count)
    return root


def arguments(data: Path, output_dir: Path, script: str, *more: str, weights: Any = (1, 3)) -> Any:
    root = data / "views" if script == "taskonomy" else data
    pairs = zip(("near", "far"), weights, strict=True)
    sources = [{"path": str(root / name), "weight": weight} for name, weight in pairs]
    output_dir.mkdir(parents=True, exist_ok=True)
    config = output_dir / "mix.yaml"
    config.write_text(yaml.safe_dump({"data_path": sources}))
    return [
        *("--config", str(config), "--eval_data_path", str(root / "val")),
        *("--output_dir", str(output_dir), "--model", "multivit_nano", "--input_size", "32"),
        *("--patch_size", "8", "--batch_size", "4", "--epochs", "2", "--warmup_epochs", "0"),
        *("--num_workers", "0", "--lr", "1e-3", *ON_CPU, "--num_pictures", "0"),
        *("--log_every", "1", *OPTIONS[script], *more),
    ]


def job_of(data: Path, output_dir: Path, script: str, *more: str, **options: Any) -> Any:
    _, kind, job = SCRIPTS[script]
    return job(parse_config(kind, arguments(data, output_dir, script, *more, **options)), ALONE)


def rows(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_mix_trains_resumes_and_counts_its_sources(
    script: str, data: Path, tmp_path: Path
) -> None:
    main = SCRIPTS[script][0]
    main(arguments(data, tmp_path / "full", script, "--save_ckpt_freq", "1", "--keep_ckpts", "2"))
    again = tmp_path / "again/checkpoints"
    again.mkdir(parents=True)
    shutil.copy(tmp_path / "full/checkpoints/checkpoint-1.pth", again)
    main(arguments(data, tmp_path / "again", script))
    full, half = (
        {row["step"]: row["loss"] for row in rows(tmp_path / name) if row["kind"] == "train"}
        for name in ("full", "again")
    )
    steps = max(full)
    assert half == {step: full[step] for step in range(steps // 2 + 1, steps + 1)}
    scores = [row for row in rows(tmp_path / "full") if row["kind"] == "eval"][-1]
    seen = scores["samples/near"] + scores["samples/far"]
    assert seen == 4 * steps and scores["samples/near"] < scores["samples/far"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_batches_are_drawn_by_weight_from_every_source(
    script: str, data: Path, tmp_path: Path
) -> None:
    dataset = job_of(data, tmp_path, script, weights=(9, 1)).train_set()
    sampler = dataset.sampler(len(dataset), 4, seed=0)
    sampler.set_range(0, 40, len(sampler))
    found = Counter(dataset[key].name.partition("/")[0] for keys in sampler for key in keys)
    assert found.keys() == {"0", "1"} and 0.8 < found["0"] / found.total() < 0.97
    assert {str(part.folder.root) for part in dataset.parts} == {
        str(part.root) for part in dataset.folder.parts
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_other_shares_do_not_resume(script: str, data: Path, tmp_path: Path) -> None:
    main = SCRIPTS[script][0]
    main(arguments(data, tmp_path, script, "--max_steps", "1"))
    message = message_of(main, arguments(data, tmp_path, script, weights=(1, 1)))
    assert "25.0%" in message and "50.0%" in message and "near" in message


@pytest.mark.parametrize(
    ("script", "more", "fact"),
    [
        ("depth", ["--max_train_images", "5"], "max_train_images"),
        ("taskonomy", ["--eval_data_path", ""], "eval_data_path"),
        ("taskonomy", ["--test"], "test_data_path"),
    ],
)
def test_options_for_one_folder_are_refused(
    script: str, more: list[str], fact: str, data: Path, tmp_path: Path
) -> None:
    _, kind, _ = SCRIPTS[script]
    with pytest.raises(UserError, match=fact):
        parse_config(kind, arguments(data, tmp_path, script, *more))


def write_masks(root: Path, images: list[list[int]]) -> None:
    """Label maps of 40 x 40 with a row for each id."""
    for i, ids in enumerate(images):
        labels = np.repeat(np.resize(ids, 40), 40).reshape(40, 40).astype(np.uint8)
        save(root / f"semseg/{i}.png", labels)
        save(root / f"rgb/{i}.png", np.full((40, 40, 3), 40 * i, np.uint8))


def test_balanced_weights_of_pixels_are_those_of_the_mix(tmp_path: Path) -> None:
    write_masks(tmp_path / "near", [[1, 2], [1, 2, 3, 4]])
    write_masks(tmp_path / "far", [[1, 1, 1, 4], [1, 3], [1, 2], [1, 4]])
    balanced = ["--class_weights", "balanced"]
    job = job_of(tmp_path, tmp_path / "out", "semseg", *balanced, weights=(1, 3))
    times = [1 / 4 * 6 / 2] * 2 + [3 / 4 * 6 / 4] * 4
    counts, present = np.zeros((2, 5))
    for weight, root, i in zip(times, ["near"] * 2 + ["far"] * 4, [0, 1, *range(4)], strict=True):
        labels = np.asarray(Image.open(tmp_path / root / f"semseg/{i}.png"))
        found = np.bincount(labels.reshape(-1), minlength=5)
        counts += weight * found
        present += weight * np.where(found, 1600, 0)
    assert job.class_weights == pytest.approx(balanced_weights(counts[1:], present[1:]))


def test_balanced_weights_of_images_are_those_of_the_mix(data: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "near", 6)
    write_scenes(tmp_path / "far", 10)
    for i in (0, 2, 4):  # class b is twice as frequent in `near`
        for modality in ("rgb", "depth"):
            (path,) = (tmp_path / f"near/{modality}/a").glob(f"{i:03d}.*")
            if i < 4:
                path.rename(tmp_path / f"near/{modality}/b" / path.name)
    job = job_of(tmp_path, tmp_path / "out", "cls", "--class_weights", "balanced")
    counts = [16 * (1 / 4 * 1 / 6 + 3 / 4 / 2), 16 * (1 / 4 * 5 / 6 + 3 / 4 / 2)]
    assert job.class_weights == pytest.approx(balanced_weights(counts, [16, 16]))


def test_sources_with_other_classes_are_refused(data: Path, tmp_path: Path) -> None:
    for name, classes in (("near", "abcd"), ("far", "abdc")):
        write_scenes(tmp_path / name, 4)
        names = json.dumps({"classes": ["void", *classes]})
        (tmp_path / name / "classes.json").write_text(names)
    with pytest.raises(UserError, match=r"near/classes\.json and .*far/classes\.json differ"):
        job_of(tmp_path, tmp_path / "out", "semseg")
    for folder in ("rgb", "depth"):
        (tmp_path / "far" / folder / "a").rename(tmp_path / "far" / folder / "c")
    with pytest.raises(UserError, match=r"3 classes (?s:.)*'c' in .*far"):
        job_of(tmp_path, tmp_path / "out", "cls")


def test_depth_in_another_unit_is_noticed_in_each_source(data: Path, tmp_path: Path) -> None:
    for name, scale in (("near", 1), ("far", 100)):
        write_scenes(tmp_path / name, 4)
        for path in (tmp_path / name / "depth").rglob("*.png"):
            stored = np.asarray(Image.open(path))
            save(path, (stored // scale).astype(np.uint16))
    main = SCRIPTS["depth"][0]
    message = message_of(main, arguments(tmp_path, tmp_path / "out", "depth"))
    assert str(tmp_path / "far") in message and "--depth_scale" in message


def test_rows_of_one_label_file_belong_to_all_sources(data: Path, tmp_path: Path) -> None:
    names = [f"{'ab'[i % 2]}/{i:03d}" for i in range(10)]
    table = tmp_path / "labels.csv"
    table.write_text("name,label\n" + "".join(f"{n},{'xy'[i % 2]}\n" for i, n in enumerate(names)))
    file = ["--label_file", str(table), "--eval_data_path", ""]
    with pytest.raises(UserError, match="6 images of the same name.*\n  - a/000"):
        job_of(data, tmp_path / "out", "cls", *file)
    for path in (write_scenes(tmp_path / "far", 10) / "rgb").rglob("*.jpg"):
        path.rename(path.with_stem(f"far-{path.stem}"))
    write_scenes(tmp_path / "near", 6)
    names = [*names[:6], *(f"{'ab'[i % 2]}/far-{i:03d}" for i in range(10))]
    table.write_text("name,label\n" + "".join(f"{n},{'xy'[i % 2]}\n" for i, n in enumerate(names)))
    run_finetuning_cls.main(arguments(tmp_path, tmp_path / "out", "cls", *file))
    assert [row["loss"] for row in rows(tmp_path / "out") if row["kind"] == "train"]
