"""Class weights: computed from label maps, read from files, applied to cross-entropy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multimae.images.folders import MultiModalFolder
from multimae.inference.truth import stored_target
from multimae.specs.heads import HeadSpec, LinearOptions
from multimae.specs.modalities import make_table, select
from tests.support.image_folders import message_of, save
from tools import check_dataset
from utils.config.cls_options import ClsConfig, ClsDataOptions
from utils.config.parse import ConfigError, parse_config
from utils.config.semseg_options import SemsegConfig
from utils.data.batches import Batch
from utils.data.dense_transforms import SegEvalTransform
from utils.data.sets.class_folders import ClassIndex
from utils.data.sets.class_weights import balanced_weights, read_weights, resolve_weights
from utils.data.sets.label_maps import SegmentationDataset
from utils.tasks.base import StepPosition
from utils.tasks.classification import ClassificationTask
from utils.tasks.segmentation import SegmentationTask

POSITION = StepPosition(0, 0, 2)
NAMES = ("wall", "floor", "lamp")


def masks(root: Path) -> Path:
    """Class 1 in 1600 of 1600 and 1200 of 1600 pixels, class 2 in 300 of 1600, 100 void."""
    second = np.full((40, 40), 1, np.uint8)
    second.reshape(-1)[:400] = [2] * 300 + [255] * 100
    save(root / "semseg/a.png", np.full((40, 40), 1, np.uint8))
    save(root / "semseg/b.png", second)
    for name in "ab":
        save(root / f"rgb/{name}.png", np.zeros((40, 40, 3), np.uint8))
    return root


def test_balanced_weights_are_those_of_the_training_labels(tmp_path: Path) -> None:
    target = stored_target(SemsegConfig().data.target())
    modalities = [*select(make_table({}), ["rgb"]), target]
    dataset = SegmentationDataset(
        MultiModalFolder(masks(tmp_path), modalities),
        SegEvalTransform(modalities, 32),
        target,
        num_classes=3,
        zero_is_void=True,
    )
    pixels, present = dataset.class_pixels()
    assert pixels.tolist() == [2800, 300, 0] and present.tolist() == [3200, 1600, 0]
    frequency = np.array([2800 / 3200, 300 / 1600])
    expected = np.median(frequency) / frequency
    found = balanced_weights(pixels, present)
    assert found == pytest.approx([*expected, expected.max()])
    option = ("balanced",)
    assert resolve_weights(option, NAMES, range(1, 4), dataset.class_pixels) == found


def test_the_doctor_writes_a_file_that_training_reads(tmp_path: Path) -> None:
    data, out = masks(tmp_path / "data"), tmp_path / "out"
    (data / "classes.json").write_text(json.dumps({"classes": ["void", *NAMES]}))
    config = tmp_path / "config.yaml"
    config.write_text("num_classes: 3\nseg_reduce_zero_label: true\n")
    check_dataset.main([str(data), "--config", str(config), "--out", str(out), "--full"])
    path = out / "class_weights_semseg.json"
    assert set(json.loads(path.read_text())) == set(NAMES)
    found = read_weights(path, NAMES, range(1, 4), {0: "void"})
    expected = balanced_weights([2800, 300, 0], [3200, 1600, 0])
    assert found == pytest.approx(expected, rel=0.05)  # the doctor's images have no void pixels


def test_files_hold_weights_by_name_or_stored_id(tmp_path: Path) -> None:
    path = tmp_path / "weights.yaml"
    path.write_text("wall: 0.5\n2: 1\nlamp: 4e0\n0: 9\nvoid: 7\n")
    assert read_weights(path, NAMES, range(1, 4), {0: "void", 255: ""}) == (0.5, 1.0, 4.0)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("{wall: 1, floor: 2}", ["lamp"]),
        ("{wall: 1, floor: 2, lamp: 1, flor: 3}", ["flor", "floor"]),
        ("{wall: 1, floor: -2, lamp: 1}", ["floor", "-2"]),
        ("{wall: 1, floor: .nan, lamp: 1}", ["floor", "nan"]),
        ("{wall: 1, floor: 2, lamp: 1, 2: 3}", ["2", "two"]),
        ("{wall: 0, floor: 0, lamp: 0}", ["0"]),
        ("[1, 2, 3]", ["name or id"]),
        ("{wall: [", ["line"]),
    ],
)
def test_bad_files_are_reported(tmp_path: Path, text: str, facts: list[str]) -> None:
    path = tmp_path / "weights.yaml"
    path.write_text(text)
    message = message_of(read_weights, path, NAMES, range(1, 4), {})
    assert str(path) in message and all(fact in message for fact in facts)


def test_options(tmp_path: Path) -> None:
    def parse(*values: str) -> Any:
        return parse_config(SemsegConfig, ["--class_weights", *values]).data.class_weights

    assert parse("none") is None and parse("balanced") == ("balanced",)
    config = tmp_path / "c.yaml"
    config.write_text("class_weights: [1, 2.5, 0]\n")
    read = parse_config(ClsConfig, ["--config", str(config)]).data.class_weights
    assert resolve_weights(read, NAMES, range(3), lambda: ([], [])) == (1.0, 2.5, 0.0)
    for bad in (["1", "-1"], ["0", "0"], ["balanced", "2"], ["1", "nan"]):
        with pytest.raises(ConfigError, match="class_weights"):
            parse(*bad)
    message = message_of(resolve_weights, ("1", "2"), NAMES, range(3), lambda: ([], []))
    assert "2 weights for 3 classes" in message and "lamp" in message
    missing = str(tmp_path / "absent.json")
    assert missing in message_of(resolve_weights, (missing,), NAMES, range(3), lambda: ([], []))


def test_segmentation_loss_is_divided_by_the_weights_of_its_pixels() -> None:
    target = dataclasses.replace(SemsegConfig().data.target(), num_classes=3)
    task = SegmentationTask(
        FakeModel(), (), target, zero_is_void=False, learn_padding=True, class_weights=(1, 2, 0.5)
    )
    logits = torch.randn(2, 4, 4, 4)
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[0, 0] = 255
    padding = torch.zeros(2, 4, 4, dtype=torch.bool)
    padding[1, 0] = True
    wanted = labels.masked_fill(padding, 3)
    expected = F.cross_entropy(logits, wanted, torch.tensor([1, 2, 0.5, 1]), ignore_index=255)
    torch.testing.assert_close(task.loss(logits, labels, padding), expected)
    with pytest.raises(ValueError, match="class 1 from 3 to 2"):
        task.load_extra_state_dict({"class_weights": torch.tensor([1, 3, 0.5, 1])})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_loss_is_divided_by_the_weights_of_its_samples(smoothing: float) -> None:
    options = ClsDataOptions(mixup=0.0, cutmix=0.0, smoothing=smoothing)
    head = HeadSpec("cls", SemsegConfig().data.target(), 2, LinearOptions())
    index = {"train": ClassIndex(["a", "b"])}
    task = ClassificationTask(FakeModel(), (), index, head, options, (1, 3))
    logits, weights = torch.randn(3, 2), torch.tensor([1.0, 3.0])
    task.predict = lambda x: {"cls": logits}  # type: ignore[method-assign,assignment]
    task.prepare = lambda batch: batch.images  # type: ignore[method-assign]
    batch = Batch({"rgb": torch.zeros(3)}, ["a/0", "b/1", "b/2"])
    expected = F.cross_entropy(logits, torch.tensor([0, 1, 1]), weights, label_smoothing=smoothing)
    torch.testing.assert_close(task(batch, POSITION).loss, expected)
    assert task.count(batch, POSITION).tolist() == [7.0]


class FakeModel(nn.Module):
    """Stands for a model that is not run."""

    output_adapters: dict[str, nn.Module] = {}
