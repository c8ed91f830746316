"""Semantic segmentation fine-tuning."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import run_finetuning_semseg
import run_pretraining_multimae
from multimae.plotting.colours import PADDING_GREY, Picture, label_palette
from multimae.specs.modalities import make_table
from multimae.weights.files import read_checkpoint
from tests.support.image_folders import message_of, save
from tests.support.scenes import ON_CPU, tiny_run, write_scenes
from utils.config.semseg_options import SemsegConfig
from utils.data.dense_transforms import INSIDE, SegEvalTransform, SegTrainTransform
from utils.data.sets.label_maps import SegmentationDataset
from utils.logs.lock import RunLock
from utils.tasks.segmentation import SegmentationPictures, SegmentationTask

SCORES = ("mean_iou", "mean_accuracy", "pixel_accuracy", "loss")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", 12)
    write_scenes(root / "val", 7, first_seed=100)
    return root


def arguments(data: Path, output_dir: Path | str, *more: str) -> list[str]:
    """A run of a second; ids are 1..4, 0 is void."""
    return [
        *("--data_path", str(data / "train"), "--eval_data_path", str(data / "val")),
        *("--output_dir", str(output_dir), "--num_classes", "4", "--seg_reduce_zero_label"),
        *("--model", "multivit_nano", "--input_size", "32", "--patch_size", "8"),
        *("--decoder_dim", "64", "--decoder_depth", "1", "--decoder_preds_per_patch", "4"),
        *("--batch_size", "4", "--epochs", "2", "--warmup_epochs", "0", "--num_workers", "0"),
        *("--lr", "1e-3", *ON_CPU, "--num_pictures", "2", "--log_every", "1"),
        *more,
    ]


def rows(output_dir: Path, kind: str) -> list[dict[str, float]]:
    lines = (output_dir / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.mark.parametrize("head", ["convnext", "segmenter", "dpt"])
@pytest.mark.parametrize("inputs", ["rgb", "depth", "rgb-depth"])
def test_every_head_and_subset_of_inputs(
    data: Path, tmp_path: Path, head: str, inputs: str
) -> None:
    run_finetuning_semseg.main(
        arguments(
            data, tmp_path, "--output_adapter", head, "--in_domains", inputs,
            "--decoder_main_tasks", inputs, "--epochs", "1",
        )
    )  # fmt: skip
    (scores,) = rows(tmp_path, "eval")
    assert all(np.isfinite(scores[f"eval/{name}"]) for name in SCORES)
    table = list(csv.DictReader((tmp_path / "eval_classes.csv").open()))
    assert [row["class"] for row in table] == ["0", "1", "2", "3"]
    assert sum(int(row["pixels"]) for row in table) > 0
    assert list((tmp_path / "pictures").glob("predictions_eval-*.png"))


def test_evaluation_of_the_best_checkpoint_repeats_its_score(data: Path, tmp_path: Path) -> None:
    test = ["--test_data_path", str(data / "val")]
    run_finetuning_semseg.main(arguments(data, tmp_path, "--epochs", "4", *test))
    evaluations = rows(tmp_path, "eval")
    best = max(row["eval/mean_iou"] for row in evaluations if "eval/mean_iou" in row)
    assert read_checkpoint(tmp_path / "checkpoints/checkpoint-best.pth")["best"] == best
    assert evaluations[-1]["test/mean_iou"] == best
    run_finetuning_semseg.main(arguments(data, tmp_path, "--eval"))
    assert rows(tmp_path, "eval")[-1]["eval/mean_iou"] == best
    run_finetuning_semseg.main(arguments(data, tmp_path, "--test", *test))
    assert rows(tmp_path, "eval")[-1]["test/mean_iou"] == best


@pytest.mark.parametrize("task", ["pretraining", "finetuning"])
def test_a_folder_in_use_is_refused(data: Path, tmp_path: Path, task: str) -> None:
    lock = RunLock(tmp_path / "run.lock")
    lock.acquire()
    try:
        if task == "pretraining":
            run = tiny_run(data / "train", tmp_path, "--epochs", "1")
            message = message_of(run_pretraining_multimae.main, run)
        else:
            message = message_of(run_finetuning_semseg.main, arguments(data, tmp_path))
    finally:
        lock.release()
    assert f"{tmp_path} is in use" in message and str(os.getpid()) in message
    assert not any(tmp_path.iterdir())


def test_pretrained_weights_are_reported_key_by_key(data: Path, tmp_path: Path) -> None:
    run_pretraining_multimae.main(tiny_run(data / "train", tmp_path / "pre", "--epochs", "1"))
    weights = tmp_path / "pre/model.safetensors"
    out = tmp_path / "out"
    run_finetuning_semseg.main(arguments(data, out, "--finetune", str(weights), "--epochs", "1"))
    fates = [line.split() for line in (out / "weights.txt").read_text().splitlines()]
    keys = {fate: {key for f, key in fates if f == fate} for fate, _ in fates}
    assert "encoder.0.attn.qkv.weight" in keys["loaded"]
    assert all(key.startswith("output_adapters.semseg.") for key in keys["new"])
    assert "output_adapters.rgb.out_proj.weight" in keys["unused"]
    assert "input_adapters.depth.proj.weight" in keys["unused"]


def test_checkpoint_without_matching_keys_is_an_error(data: Path, tmp_path: Path) -> None:
    torch.save({"model": {"stem.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    message = message_of(
        run_finetuning_semseg.main,
        arguments(data, tmp_path / "out", "--finetune", str(tmp_path / "other.pth")),
    )
    assert "other.pth does not fit this model" in message and "stem.weight" in message


def test_pseudo_labels_and_the_validity_mask(data: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for path in (data / split / "semseg").rglob("*.png"):
            for folder in ("pseudo_semseg", "mask_valid"):
                other = data / split / folder / path.relative_to(data / split / "semseg")
                pixels = np.full((40, 40), 255, np.uint8)
                if folder == "pseudo_semseg":
                    pixels //= 2
                save(other, pixels)
    run_finetuning_semseg.main(
        arguments(
            data, tmp_path, "--in_domains", "rgb-depth-pseudo_semseg", "--use_mask_valid",
            "--seg_use_void_label", "--epochs", "1",
        )
    )  # fmt: skip
    state = read_checkpoint(tmp_path / "checkpoints/checkpoint-1.pth")["model"]
    assert state["input_adapters.semseg.class_emb.weight"].shape[0] == 134
    assert state["output_adapters.semseg.final_layer.weight"].shape[0] == 5


def small_dataset(root: Path, transform: type[SegEvalTransform], size: int) -> SegmentationDataset:
    from multimae.images.folders import MultiModalFolder
    from multimae.inference.truth import stored_target
    from multimae.specs.modalities import default_table

    target = stored_target(SemsegConfig().data.target())
    table = default_table()
    chosen = transform([table["rgb"], table["depth"], target], size)
    folder = MultiModalFolder(root, chosen.modalities)
    return SegmentationDataset(folder, chosen, target, num_classes=4, zero_is_void=True)


def test_padding_is_marked_and_never_counted(tmp_path: Path) -> None:
    from utils.data.samplers import SampleKey

    save(tmp_path / "rgb/a/0.png", np.full((20, 40, 3), 200, np.uint8))
    save(tmp_path / "depth/a/0.png", np.full((20, 40), 3000, np.uint16))
    save(tmp_path / "semseg/a/0.png", np.full((20, 40), 3, np.uint8))
    sample = small_dataset(tmp_path, SegEvalTransform, 32)[SampleKey(0, 0)].images
    inside = sample[INSIDE]
    assert inside[:16].all() and not inside[16:].any()
    assert (sample["rgb"][:, 16:] == 128).all() and (sample["rgb"][:, :16] == 200).all()
    assert (sample["depth"][:, 16:] == 254).all()
    assert (sample["segmentation"][16:] == 254).all()

    seen = set()
    for epoch in range(30):
        sample = small_dataset(tmp_path, SegTrainTransform, 32)[SampleKey(epoch, 0)].images
        inside = sample[INSIDE]
        assert (sample["segmentation"][inside] == 3).all()
        assert (sample["segmentation"][~inside] == 254).all()
        seen.add(int(inside.sum()))
    assert len(seen) > 5 and min(seen) < 16 * 32 * 0.5 < 16 * 32 * 1.5 < max(seen)


@pytest.mark.parametrize("zero_is_void", [False, True])
def test_void_and_padding_are_ignored_in_the_loss(zero_is_void: bool) -> None:
    from torch import nn

    from utils.data.batches import Batch

    task = SegmentationTask.__new__(SegmentationTask)
    nn.Module.__init__(task)
    task.set_class_weights(None)
    task.losses = ("ce",)
    task.target, task.learn_padding = SemsegConfig().data.target(), False
    task.zero_is_void = zero_is_void
    logits = torch.randn(1, 150, 4, 4, requires_grad=True)
    inside = torch.zeros(1, 4, 4, dtype=torch.bool)
    inside[:, :2] = True
    stored = torch.full((1, 4, 4), 255)
    stored[0, 1, 0] = 0 if zero_is_void else 255
    stored[0, 2] = 9  # padding, whatever it holds
    stored[0, 3] = 254
    nothing = task.loss(logits, *task.labels(Batch({"segmentation": stored, INSIDE: inside}, [""])))
    nothing.backward()
    assert nothing == 0 and logits.grad is not None and (logits.grad == 0).all()
    stored[0, 0, 0] = 7 + zero_is_void
    labels, padding = task.labels(Batch({"segmentation": stored, INSIDE: inside}, [""]))
    expected = torch.nn.functional.cross_entropy(logits[:, :, 0, 0], torch.tensor([7]))
    torch.testing.assert_close(task.loss(logits, labels, padding), expected)


def test_seg_use_void_label_trains_padding_but_not_void() -> None:
    from torch import nn

    from utils.data.batches import Batch

    task = SegmentationTask.__new__(SegmentationTask)
    nn.Module.__init__(task)
    task.set_class_weights(None)
    task.losses = ("ce",)
    task.target, task.learn_padding, task.zero_is_void = SemsegConfig().data.target(), True, False
    inside = torch.zeros(1, 4, 4, dtype=torch.bool)
    inside[:, :2] = True
    stored = torch.full((1, 4, 4), 255)
    stored[0, 0] = 7
    labels, padding = task.labels(Batch({"segmentation": stored, INSIDE: inside}, ["a/0"]))
    logits = torch.randn(1, 151, 4, 4)
    learnt = torch.tensor([[7] * 4, [150] * 4, [150] * 4])[None]
    expected = torch.nn.functional.cross_entropy(logits[:, :, [0, 2, 3]], learnt)
    torch.testing.assert_close(task.loss(logits, labels, padding), expected)


def test_evaluation_reads_label_0_as_the_weights_say(data: Path, tmp_path: Path) -> None:
    run = arguments(data, tmp_path, "--epochs", "1", "--num_pictures", "0")
    run_finetuning_semseg.main(run)
    expected = rows(tmp_path, "eval")[-1]["eval/mean_iou"]
    unset = [flag for flag in run if flag != "--seg_reduce_zero_label"]
    run_finetuning_semseg.main([*unset, "--eval"])
    assert rows(tmp_path, "eval")[-1]["eval/mean_iou"] == expected
    other = [*unset, "--no_seg_reduce_zero_label", "--eval"]
    message = message_of(run_finetuning_semseg.main, other)
    assert "seg_reduce_zero_label: the weights' True, yours False" in message
    run_finetuning_semseg.main([*other, "--override_inputs"])
    assert rows(tmp_path, "eval")[-1]["eval/mean_iou"] != expected


def test_resuming_with_classes_in_another_order_is_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path / "train", 4)
    run = arguments(tmp_path, tmp_path / "run", "--eval_data_path", "none", "--num_pictures", "0")

    def name(*names: str) -> None:
        (tmp_path / "train/classes.json").write_text(json.dumps({"classes": ["void", *names]}))

    name("wall", "floor", "door", "bed")
    run_finetuning_semseg.main([*run, "--epochs", "1", "--save_ckpt_freq", "1"])
    name("wall", "floor", "bed", "door")
    message = message_of(run_finetuning_semseg.main, run)
    assert "class names" in message and "door -> bed" in message


def test_pictures_show_no_prediction_on_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}

    def note(columns: Mapping[str, Sequence[Picture]], **more: object) -> None:
        drawn.update(more, columns=columns)

    monkeypatch.setattr("utils.tasks.segmentation.prediction_grid", note)
    padding = torch.zeros(1, 16, 16, dtype=torch.bool)
    padding[:, 10:] = True
    labels = torch.full((1, 16, 16), 1).masked_fill(padding, 255)
    target = make_table({"semseg": {"num_classes": 5}})["semseg"]
    task = SimpleNamespace(
        target=target, inputs=[make_table()["rgb"]], labels=lambda batch: (labels, padding)
    )
    logits = torch.zeros(1, 5, 16, 16)
    logits[:, 3, :10], logits[:, 4, 10:] = 1.0, 1.0  # class 4 is predicted on padding only
    photo = [np.full((16, 16, 3), 9, np.uint8)]
    pictures = SimpleNamespace(task=task)
    batch = SimpleNamespace(names=["a"])
    SegmentationPictures.draw(pictures, batch, {"rgb": photo}, {"semseg": logits})  # type: ignore[arg-type]
    prediction = drawn["columns"]["prediction"][0]
    assert (prediction[:10] == label_palette(6)[4]).all()
    assert set(drawn["columns"]) == {"rgb", "prediction", "truth", "over photo"}
    for (picture,) in drawn["columns"].values():
        edge = 10 * len(picture) // 16
        assert (picture[edge:] == PADDING_GREY).all() and (picture[:edge] != PADDING_GREY).any()
    assert np.unique(drawn["ids"]).tolist() == [2, 4]
