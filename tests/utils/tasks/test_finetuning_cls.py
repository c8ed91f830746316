"""Classification fine-tuning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import run_finetuning_cls
from multimae import MultiMAE
from multimae.specs.errors import UserError
from multimae.specs.modalities import default_table
from tests.support.image_folders import message_of
from tests.support.scenes import ON_CPU, write_scenes
from utils.config.cls_options import ClsConfig
from utils.config.parse import parse_config
from utils.data.sets.class_folders import (
    ClassEvalTransform,
    ClassIndex,
    ClassTrainTransform,
    mix,
)
from utils.distributed.world import World
from utils.tasks.classification import ClassificationFinetuning

ROWS = [default_table()[name] for name in ("rgb", "depth", "semseg")]
ONE_PROCESS = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", 12)
    write_scenes(root / "val", 7, first_seed=100)
    return root


def arguments(data: Path, output_dir: Path | str, *more: str) -> list[str]:
    return [
        *("--data_path", str(data / "train/rgb"), "--eval_data_path", str(data / "val")),
        *("--output_dir", str(output_dir), "--model", "multivit_nano", "--nb_classes", "2"),
        *("--input_size", "32", "--patch_size", "8", "--batch_size", "4", "--epochs", "2"),
        *("--warmup_epochs", "0", "--num_workers", "0", "--lr", "1e-3", *ON_CPU),
        *("--num_pictures", "2", "--log_every", "1"),
        *more,
    ]


def evaluations(output_dir: Path) -> list[dict[str, float]]:
    lines = (output_dir / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "eval"]


@pytest.mark.parametrize(
    "more",
    [
        ["--in_domains", "rgb"],
        ["--in_domains", "rgb-depth", "--standardize_depth", "--reprob", "0.5"],
        ["--in_domains", "depth", "--mixup_mode", "elem", "--no_mean_pooling"],
        ["--mixup", "0", "--cutmix", "0", "--aa", "none", "--model_ema"],
        ["--disable_eval_during_finetuning", "--mixup_mode", "pair"],
    ],
    ids=" ".join,
)
def test_inputs_and_augmentations(data: Path, tmp_path: Path, more: list[str]) -> None:
    run_finetuning_cls.main(arguments(data, tmp_path, *more))
    scores = evaluations(tmp_path)
    assert len(scores) == (1 if "--disable_eval_during_finetuning" in more else 2)
    assert 0 <= scores[-1]["eval/acc1"] <= 100 and scores[-1]["eval/acc5"] == 100
    assert list((tmp_path / "pictures").glob("predictions_eval-*.png"))
    run_finetuning_cls.main(arguments(data, tmp_path, *more, "--eval"))
    best = max(row["eval/acc1"] for row in scores)
    assert evaluations(tmp_path)[-1]["eval/acc1"] == pytest.approx(best)


def test_the_same_seed_gives_the_same_run(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_finetuning_cls.main(arguments(data, tmp_path / name, "--drop", "0.1"))
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row.get("loss") for row in one] == [row.get("loss") for row in two]


def test_evaluation_does_not_need_training_images(data: Path, tmp_path: Path) -> None:
    run_finetuning_cls.main(arguments(data, tmp_path / "run", "--epochs", "1"))
    weights = tmp_path / "run/model.safetensors"
    elsewhere = ("--data_path", str(tmp_path / "gone"), "--nb_classes", "1000")
    scoring = arguments(data, tmp_path / "score", "--eval", *elsewhere)
    run_finetuning_cls.main([*scoring, "--finetune", str(weights)])
    trained, scored = (evaluations(tmp_path / name)[-1] for name in ("run", "score"))
    assert scored["eval/acc1"] == trained["eval/acc1"]
    assert scored["eval/loss"] == pytest.approx(trained["eval/loss"])
    # The weights name their classes: folders that they do not know are no classes of theirs.
    other = write_scenes(tmp_path / "val", 4)
    for folder in ("rgb", "depth", "semseg", "normals"):
        (other / folder / "a").rename(other / folder / "c")
    unknown = [*scoring, "--finetune", str(weights), "--eval_data_path", str(other)]
    assert "- c" in message_of(run_finetuning_cls.main, unknown)
    missing = [*scoring, "--finetune", str(tmp_path / "no.safetensors")]
    assert "no.safetensors" in message_of(run_finetuning_cls.main, missing)
    # So does a checkpoint of the run; one of an earlier version does not: the images do.
    run_finetuning_cls.main(arguments(data, tmp_path / "run", "--eval", *elsewhere))
    assert evaluations(tmp_path / "run")[-1]["eval/acc1"] == trained["eval/acc1"]
    best = tmp_path / "run/checkpoints/checkpoint-best.pth"
    unnamed = {k: v for k, v in torch.load(best, weights_only=True).items() if k != "spec"}
    torch.save(unnamed, best)
    scoring = arguments(data, tmp_path / "run", "--eval", *elsewhere)
    assert "gone" in message_of(run_finetuning_cls.main, scoring)


def test_wrong_classes(data: Path, tmp_path: Path) -> None:
    message = message_of(run_finetuning_cls.main, arguments(data, "", "--nb_classes", "5"))
    assert "2 classes (a, b)" in message and "--nb_classes 2" in message
    other = write_scenes(tmp_path / "val", 4)
    for folder in ("rgb", "depth", "semseg", "normals"):
        (other / folder / "b").rename(other / folder / "c")
    message = message_of(
        run_finetuning_cls.main, arguments(data, "", "--eval_data_path", str(other))
    )
    assert "classes that the training set does not have" in message and "- c" in message


def test_only_training_needs_even_batches() -> None:
    argv = ["--batch_size", "1", "--finetune", "weights.safetensors"]
    with pytest.raises(UserError, match="batch_size: 1 is odd"):
        parse_config(ClsConfig, argv)
    assert parse_config(ClsConfig, [*argv, "--eval"]).runtime.batch_size == 1


@pytest.mark.parametrize(("size", "share"), [(224, 0.875), (368, 0.875), (384, 1.0), (512, 1.0)])
def test_evaluation_keeps_the_full_side_from_384_on(data: Path, size: int, share: float) -> None:
    argv = arguments(data, "", "--input_size", str(size))
    for more, expected in ((), share), (("--crop_pct", "0.9"), 0.9):
        cfg = parse_config(ClsConfig, [*argv, *more])
        transform = ClassificationFinetuning(cfg, ONE_PROCESS).eval_set("eval").transform  # type: ignore[union-attr]
        assert isinstance(transform, ClassEvalTransform) and transform.crop_pct == expected


def test_class_ids() -> None:
    assert ClassIndex(["bath", "kitchen"]).ids(["kitchen/7", "bath/1"]).tolist() == [1, 0]


def batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    x = {
        "rgb": torch.randn(4, 3, 16, 16),
        "depth": torch.randn(4, 1, 16, 16),
        "semseg": torch.randint(0, 133, (4, 4, 4)),
    }
    return x, torch.tensor([0, 1, 2, 3])


def mixup(**options: float) -> object:
    from timm.data.mixup import Mixup

    np.random.seed(3)  # noqa: NPY002
    return Mixup(num_classes=5, label_smoothing=0.1, **options)


def test_mixing_equals_timm_for_each_modality() -> None:
    for options in ({"mixup_alpha": 0.8}, {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}):
        x, target = batch()
        mixed, soft = mix(mixup(**options), x, target, ROWS)
        for name in ("rgb", "depth"):
            expected, labels = mixup(**options)(x[name].clone(), target)  # type: ignore[operator]
            assert torch.allclose(mixed[name], expected) and torch.allclose(soft, labels)


def test_cutmix_and_mixup_paste_label_maps() -> None:
    x, target = batch()
    x["depth"] = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 16, 16).contiguous()
    mixed, _ = mix(mixup(mixup_alpha=0.0, cutmix_alpha=1.0), x, target, ROWS)
    foreign = mixed["depth"][:, 0, ::4, ::4] != x["depth"][:, 0, ::4, ::4]
    assert 0 < foreign.float().mean() < 1
    assert torch.equal(mixed["semseg"], torch.where(foreign, x["semseg"].flip(0), x["semseg"]))


@pytest.mark.parametrize("policy", ["rand-m10-mstd0.5-inc1-n4", "original", "augmix-m10-w3"])
def test_strongest_augmentation_keeps_a_valid_image(policy: str) -> None:
    row = default_table()["rgb"]
    transform = ClassTrainTransform([row], 32, policy)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for seed in range(150):  # timm's strongest Posterize keeps no bit, which Pillow refuses
        torch.manual_seed(seed)
        assert transform({"rgb": Image.fromarray(pixels)})["rgb"].shape == (3, 32, 32)


def write_labels(data: Path, path: Path, kind: str) -> Path:
    """Labels of both splits, from the mean colour of the image; names do not overlap."""
    rows = ["name,label"] if kind != "number" else ["name,red,blue"]
    for split in ("train", "val"):
        for file in sorted((data / split / "rgb").rglob("*.jpg")):
            name = file.relative_to(data / split / "rgb")
            red, _, blue = np.asarray(Image.open(file)).reshape(-1, 3).mean(axis=0).tolist()
            labels = ["warm"] * (red > blue) + ["bright"] * (red + blue > 140)
            one = "warm" if red > blue else "cold"
            numbers = f"{red:.3f},{blue:.3f}"
            text = {"class": one, "multi": ";".join(labels), "number": numbers}[kind]
            rows.append(f"{name},{text}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("apart")
    write_scenes(root / "train", 8)
    write_scenes(root / "val", 13, first_seed=100)
    for folder in (root / "val").iterdir():
        for path in [p for p in folder.rglob("*") if p.is_file() and p.stem < "008"]:
            path.unlink()
    return root


@pytest.mark.parametrize(
    "kind, metrics",
    [
        ("class", {"acc1", "acc5", "loss"}),
        ("multi", {"map", "f1_micro", "f1_macro", "loss"}),
        ("number", {*(f"{m}/{n}" for m in ("mae", "rmse", "r2") for n in ("red", "blue")), "loss"}),
    ],
)
def test_labels_in_a_file(apart: Path, tmp_path: Path, kind: str, metrics: set[str]) -> None:
    file, out = write_labels(apart, tmp_path / "labels.csv", kind), tmp_path / "out"
    more = ["--label_file", str(file), "--label_kind", kind, "--save_ckpt_freq", "1"]
    run_finetuning_cls.main(arguments(apart, out, *more))
    first = evaluations(out)[-1]
    assert {k.partition("/")[2] for k in first if k.startswith("eval/")} == metrics
    run_finetuning_cls.main(arguments(apart, tmp_path / "scored", *more, "--eval", "--finetune",
                                      str(out / "model.safetensors")))  # fmt: skip
    again = evaluations(tmp_path / "scored")[-1]
    assert {k: again[k] for k in again if k.startswith("eval/")} == pytest.approx(
        {k: first[k] for k in first if k.startswith("eval/")}, rel=1e-5
    )
    model = MultiMAE.from_pretrained(out / "model.safetensors")
    image = model.predict(apart / "val/rgb/a/008.jpg")
    pred = image["cls"]
    if kind == "number":
        errors = []
        for path in sorted((apart / "val/rgb").rglob("*.jpg")):
            one = model.predict(path)
            red = np.asarray(Image.open(path)).reshape(-1, 3).mean(axis=0)[0]
            errors.append(abs(float(one["cls"].values[0]) - red))
        assert pred.names == ("red", "blue")
        assert np.mean(errors) == pytest.approx(first["eval/mae/red"], rel=1e-2)
    else:
        assert pred.multi == (kind == "multi") and len(pred.probabilities) == 2
    with file.open() as stream:
        text = stream.read()
    file.write_text(text.replace("000.jpg,", "000.jpg,1" if kind == "number" else "000.jpg,bright;"
                                 if kind == "multi" else "000.jpg,cold_"))  # fmt: skip
    if kind != "class":
        resumed = arguments(apart, out, *more, "--epochs", "3")
        assert "labels" in message_of(run_finetuning_cls.main, resumed)


def test_images_without_a_row_are_named(apart: Path, tmp_path: Path) -> None:
    file = write_labels(apart, tmp_path / "labels.csv", "multi")
    file.write_text("".join(line for line in file.open() if "a/002" not in line))
    more = ["--label_file", str(file), "--label_kind", "multi"]
    message = message_of(run_finetuning_cls.main, arguments(apart, tmp_path / "out", *more))
    assert "a/002" in message and "1 of 8" in message


def test_mixup_of_several_labels_is_refused() -> None:
    with pytest.raises(UserError, match="mixup"):
        parse_config(ClsConfig, ["--label_kind", "multi", "--label_file", "x", "--mixup", "0.5"])
    cfg = parse_config(ClsConfig, ["--label_kind", "number", "--label_file", "x"])
    assert not cfg.data.mixes


@pytest.mark.parametrize("kind", ["multi", "number"])
def test_unknown_labels_and_the_global_batch(apart: Path, tmp_path: Path, kind: str) -> None:
    """An update does not depend on how its batch is divided, though counts of labels differ."""
    file = write_labels(apart, tmp_path / "labels.csv", "number")
    rows = [line.split(",") for line in file.read_text().splitlines()]
    for i, row in enumerate(rows[1:]):
        known = row[1:] if kind == "number" else [str(i % 2), str(i % 3 // 2)]
        row[1:] = [known[0], "" if i % 3 == 0 else known[1]]
    file.write_text("\n".join(map(",".join, rows)) + "\n")
    losses = []
    for size, accumulated in ((4, 1), (2, 2), (1, 4)):
        out = tmp_path / str(size)
        more = ["--label_file", str(file), "--label_kind", kind, "--drop_path", "0"]
        more += ["--batch_size", str(size), "--update_freq", str(accumulated), "--aa", "none"]
        more += ["--color_jitter", "0", "--no_save_ckpt"]
        run_finetuning_cls.main(arguments(apart, out, *more))
        lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in lines if row["kind"] == "train"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    if kind == "multi":  # the head starts near 0: the mean over known labels is log 2
        assert losses[0][0] == pytest.approx(math.log(2), rel=0.01)
