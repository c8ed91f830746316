"""Label statistics, and label maps that contradict the declared classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from multimae.images.folders import MultiModalFolder
from multimae.inference.label_files import read_label_file
from multimae.specs.heads import HeadSpec, LinearOptions
from multimae.specs.modalities import Modality, make_table
from tests.support.image_folders import message_of, save
from utils.config.parse import ConfigError, parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.config.semseg_options import SemsegConfig
from utils.data.dataset import MultiModalDataset, check_samples
from utils.data.sample_checks import LabelTable, label_tables, overlap_warnings, range_warnings
from utils.data.sets.label_maps import (
    check_classes,
    check_same_classes,
    reduced_class_names,
    validity_mask,
)
from utils.data.transforms import EvalTransform
from utils.distributed.world import World
from utils.tasks.pretraining import run_modalities
from utils.tasks.segmentation import SegmentationFinetuning


def write(root: Path, *maps: np.ndarray, names: tuple[str, ...] = ()) -> Path:
    for i, ids in enumerate(maps):
        save(root / f"rgb/{i}.png", np.zeros((*ids.shape, 3), np.uint8))
        save(root / f"semseg/{i}.png", ids)
    if names:
        (root / "classes.json").write_text(json.dumps({"classes": names}))
    return root


def halves(low: int, high: int) -> np.ndarray:
    ids = np.full((32, 32), low, np.uint8)
    ids[24:] = high
    return ids


def job(root: Path, *more: str, eval_root: Path | None = None) -> SegmentationFinetuning:
    flags = ["--data_path", str(root), "--eval_data_path", str(eval_root or root)]
    flags += ["--device", "cpu", "--model", "multivit_tiny", "--input_size", "32"]
    cfg = parse_config(SemsegConfig, [*flags, *more])
    return SegmentationFinetuning(cfg, World(0, 1, torch.device("cpu")))


def report(root: Path, *more: str) -> str:
    task = job(root, *more)
    return "\n".join(task.describe(task.train_set()))


def test_table_lists_every_id_with_its_fraction(tmp_path: Path) -> None:
    root = write(tmp_path, halves(0, 2), halves(1, 255), names=("sky", "sea", "sand"))
    text = report(root, "--num_classes", "3")
    for entry in ("0 sky: 37.50 %", "1 sea: 37.50 %", "2 sand: 12.50 %", "255 (void): 12.50 %"):
        assert entry in text
    assert "warning" not in text


@pytest.mark.parametrize(
    ("ids", "options"),
    [((0, 255), ()), ((1, 0), ("--seg_reduce_zero_label",)), ((1, 255), ())],
)
def test_masks_of_0_and_255_are_refused(
    tmp_path: Path, ids: tuple[int, int], options: tuple[str, ...]
) -> None:
    task = job(write(tmp_path, halves(*ids)), "--num_classes", "2", *options)
    message = message_of(task.train_set)
    assert f"{ids[0]} (75.00 %)" in message and f"{ids[1]} (25.00 %)" in message
    assert f"{ids[1]} is void" in message and str(tmp_path) in message


def test_binary_masks_of_0_and_1_are_fine(tmp_path: Path) -> None:
    assert "warning" not in report(write(tmp_path, halves(0, 1)), "--num_classes", "2")


def test_classes_that_do_not_occur_are_named(tmp_path: Path) -> None:
    root = write(tmp_path, halves(0, 2), names=("sky", "sea", "sand", "boat"))
    text = report(root, "--num_classes", "4")
    assert "2 of 4 classes" in text and "1 sea, 3 boat" in text


@pytest.mark.parametrize(
    ("names", "num_classes", "reduced", "hint"),
    [
        (("void", "a", "b"), 2, False, "set seg_reduce_zero_label"),
        (("wall", "a", "b"), 3, True, "drop seg_reduce_zero_label"),
        (("a", "b"), 5, False, "num_classes to 2"),
    ],
)
def test_another_number_of_names_is_refused(
    names: tuple[str, ...], num_classes: int, reduced: bool, hint: str
) -> None:
    message = message_of(reduced_class_names, names, num_classes, reduced, "x/classes.json")
    assert "x/classes.json" in message and str(num_classes) in message and hint in message


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    message = message_of(reduced_class_names, ("void", "a", "b", "a"), 3, True, "x/classes.json")
    assert "'a'" in message and "'b'" not in message and "x/classes.json" in message
    assert reduced_class_names(("a", "a", "b"), 2, True) == ("a", "b")  # void has a name of its own
    with pytest.raises(ConfigError, match="two classes are called 'a'"):
        names = "{semseg: {num_classes: 3, class_names: [a, b, a]}}"
        parse_config(PretrainConfig, ["--modalities", names])
    root = write(tmp_path, halves(0, 1), names=("wall", "lamp", "wall"))
    cfg = parse_config(
        PretrainConfig,
        ["--data_path", str(root), "--modalities", "{semseg: {num_classes: 3}}"],
    )
    assert "'wall'" in message_of(run_modalities, cfg)
    path = tmp_path / "labels.csv"
    path.write_text("name,x,x\na,1,0\n")
    assert "'x'" in message_of(read_label_file, path, "multi")


def test_weights_keep_equal_class_names() -> None:
    names = ("a", "b", "a")
    target = Modality(
        "labels", "labels", num_classes=3, class_names=names, loss="cross_entropy",
        interpolation="nearest",
    )  # fmt: skip
    head = HeadSpec("cls", target, 3, LinearOptions())
    assert HeadSpec.from_dict(head.to_dict()).target.class_names == names


def test_a_named_class_that_becomes_void_is_reported(tmp_path: Path) -> None:
    root = write(tmp_path, halves(0, 1), halves(1, 2), names=("wall", "door", "lamp"))
    text = report(root, "--num_classes", "2", "--seg_reduce_zero_label")
    assert "id 0 (wall) void, 37.50 %" in text
    (root / "classes.json").write_text(json.dumps({"classes": ["Void", "door", "lamp"]}))
    assert "warning" not in report(root, "--num_classes", "2", "--seg_reduce_zero_label")
    learned = report(root, "--num_classes", "3")
    assert "id 0 is named 'Void' and is learned" in learned


def test_an_unnamed_id_0_that_covers_most_is_reported(tmp_path: Path) -> None:
    root = write(tmp_path, halves(0, 1), halves(0, 2))
    assert "id 0 void, 75.00 %" in report(root, "--num_classes", "2", "--seg_reduce_zero_label")


def test_sets_with_other_class_names_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "a", halves(0, 1), names=("sky", "sea"))
    other = write(tmp_path / "b", halves(0, 1), names=("sea", "sky"))
    task = job(train, "--num_classes", "2", eval_root=other)
    message = message_of(task.eval_set, "eval")
    assert "class 0 is 'sea' and 'sky'" in message and str(other) in message
    check_same_classes(("a",), (), "x", "y")


def test_labels_of_pretraining_have_a_table(tmp_path: Path) -> None:
    root = write(tmp_path, halves(0, 2), halves(255, 2))
    row = make_table({"semseg": {"num_classes": 3, "no_data": 255, "class_names": ["a", "b", "c"]}})
    modalities = [row["rgb"], row["semseg"]]
    dataset = MultiModalDataset(MultiModalFolder(root, modalities), EvalTransform(modalities, 32))
    check_samples(dataset, 2)
    (table,) = label_tables(dataset)
    text = "\n".join(table.lines())
    assert "0 a: 37.50 %; 2 c: 25.00 %; 255 (void): 37.50 %" in text and "1 b" in text


def test_number_of_class_names_must_match_num_classes() -> None:
    with pytest.raises(ValueError, match="2 class_names, num_classes is 3"):
        make_table({"semseg": {"num_classes": 3, "class_names": ["a", "b"]}})


def test_single_class_without_void_is_an_error() -> None:
    counts = np.zeros(65536, np.int64)
    counts[3] = 9
    check_classes(LabelTable("x", Path("x"), counts, range(5)))


@pytest.mark.parametrize("valid", [1, 255])
def test_validity_masks_of_0_and_1_mark_valid_pixels_by_1(valid: int) -> None:
    mask = validity_mask(halves(0, valid), "m.png")
    np.testing.assert_array_equal(mask, halves(0, 255))


@pytest.mark.parametrize("other", [2, 128, 254])
def test_validity_masks_with_other_values_are_refused(other: int) -> None:
    message = message_of(validity_mask, halves(0, other), "m.png")
    assert "m.png" in message and str(other) in message


def test_an_input_depth_with_a_mask_of_0_and_1_is_not_void(tmp_path: Path) -> None:
    root = write(tmp_path, halves(0, 1))
    save(root / "depth/0.png", np.full((32, 32), 900, np.uint16))
    save(root / "mask_valid/0.png", halves(0, 1))
    more = ("--num_classes", "2", "--in_domains", "depth", "--use_mask_valid")
    task = job(root, *more, "--decoder_main_tasks", "depth")
    pixels, problems = task.train_set()._read(0)
    assert not problems
    np.testing.assert_array_equal(np.asarray(pixels["mask_valid"]), halves(0, 255))


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ((np.uint8(200), np.uint16(6000), np.uint16(9000)), "1 of 3 checked samples have no value"),
        ((np.uint16(0),) * 3, "are 0 or no_data"),
        ((np.uint16(6000), np.uint16(0), np.uint16(300)), ""),
    ],
)
def test_samples_of_other_bit_depth_or_without_values_give_a_warning(
    tmp_path: Path, stored: tuple[np.generic, ...], named: str
) -> None:
    for i, value in enumerate(stored):
        save(tmp_path / f"depth/{i}.png", np.full((40, 40), value))
    row = make_table()["depth"]
    folder = MultiModalFolder(tmp_path, [row])
    dataset = MultiModalDataset(folder, EvalTransform([row], 32))
    check_samples(dataset, 3)
    lines = list(range_warnings(dataset, [row], {}))
    assert [named in line for line in lines] == [True] * bool(named)


def test_evaluation_on_training_samples_gives_a_warning(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"data/depth/{i}.png", np.full((40, 40), 6000, np.uint16))
    (tmp_path / "link").symlink_to(tmp_path / "data")
    row = make_table()["depth"]

    def dataset(root: str, limit: int | None = None) -> MultiModalDataset:
        folder = MultiModalFolder(tmp_path / root, [row])
        return MultiModalDataset(folder, EvalTransform([row], 32), limit=limit)

    (line,) = overlap_warnings(dataset("data", 2), dataset("link"))
    assert "2 of 4 evaluation samples" in line and str(tmp_path / "data") in line
    (tmp_path / "link").unlink()
    (tmp_path / "data").rename(tmp_path / "link")
    shutil.copytree(tmp_path / "link", tmp_path / "data")
    assert not list(overlap_warnings(dataset("data"), dataset("link")))
