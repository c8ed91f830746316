"""Label maps and file suffixes: ids and colours of any format become class ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import run_finetuning_semseg
from multimae import MultiMAE
from multimae.images.folders import MultiModalFolder
from multimae.images.readers import read
from multimae.inference.truth import stored_target, with_no_data
from multimae.specs.label_map import map_labels, mapped_names, parse_label_map
from multimae.specs.modalities import Modality, make_table
from multimae.specs.preparation import prepared_as
from multimae.specs.spec import ModelSpec
from tests.support.image_folders import message_of, save
from tests.support.scenes import write_scenes
from tests.utils.tasks.test_finetuning_semseg import arguments, rows
from tools import check_dataset, pack_dataset
from utils.config.parse import ConfigError, parse_config
from utils.config.semseg_options import SemsegConfig

IDS = np.repeat(np.array([[7, 8], [11, 7]], np.uint8), 8, 0).repeat(8, 1)
WANTED = np.where(IDS == 7, 0, np.where(IDS == 8, 1, 255)).astype(np.uint8)
COLOURS = {7: (128, 64, 128), 8: (244, 35, 232), 11: (70, 70, 70)}
BY_ID = {7: 0, 8: 1, "default": 255}
BY_COLOUR = {"#804080": 0, "[244, 35, 232]": 1, "#464646": 255}


def labels(label_map: object, num_classes: int = 2) -> Modality:
    table = make_table({"mask": {
        "kind": "labels", "num_classes": num_classes, "interpolation": "nearest",
        "loss": "cross_entropy", "plot": "labels", "label_map": label_map,
    }})  # fmt: skip
    return table["mask"]


def coloured() -> np.ndarray:
    out = np.zeros((*IDS.shape, 3), np.uint8)
    for i, colour in COLOURS.items():
        out[i == IDS] = colour
    return out


def write(root: Path, kind: str) -> tuple[Path, object]:
    """A file of IDS in a format, and the map that reads it."""
    if kind == "png":
        return save(root / "mask/a.png", IDS), BY_ID
    if kind == "png16":
        return save(root / "mask/a.png", IDS.astype(np.uint16) * 1000), {
            7000: 0,
            8000: 1,
            11000: 255,
        }
    if kind == "rgb.png":
        return save(root / "mask/a.png", coloured()), BY_COLOUR
    if kind.startswith("palette"):
        image = Image.fromarray(IDS, "P")
        image.putpalette([v for i in range(12) for v in COLOURS.get(i, (0, 0, 0))])
        (root / "mask").mkdir(parents=True, exist_ok=True)
        image.save(root / "mask/a.png")
        return root / "mask/a.png", BY_COLOUR if "colour" in kind else BY_ID
    path = root / f"mask/a.{kind.partition('.')[2]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "rgb.tif":
        tifffile.imwrite(path, coloured(), photometric="rgb")
        return path, BY_COLOUR
    np.save(path, coloured() if kind == "rgb.npy" else IDS.astype(np.int32) - 9)
    return path, BY_COLOUR if kind == "rgb.npy" else {-2: 0, -1: 1, 2: 255}


KINDS = ("png", "png16", "rgb.png", "palette", "palette colours", "rgb.tif", "rgb.npy", "ids.npy")


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_class_ids(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "data"
    path, label_map = write(root, kind)
    m = labels(label_map)
    assert m.no_data == 255
    found = np.asarray(read(path, m))
    assert found.dtype == np.uint8 and (found == WANTED).all()
    folder = MultiModalFolder(root, [m])
    assert (np.asarray(folder.read(0, m)) == WANTED).all()
    if kind in ("png", "rgb.png"):
        packed = tmp_path / "packed"
        pack_dataset.main(["--data_path", str(root), "--out", str(packed)])
        folder = MultiModalFolder(packed, [m])
        assert (np.asarray(folder.read(0, m)) == WANTED).all()


def test_unmapped_values_are_listed_with_their_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", IDS)
    message = message_of(read, path, labels({7: 0, 9: 1}))
    assert str(path) in message and "8 (64 pixels)" in message and "11 (64 pixels)" in message
    path = save(tmp_path / "b.png", coloured())
    message = message_of(read, path, labels({"#804080": 0, "#f423e8": 1}))
    assert "#464646 (64 pixels)" in message and "#804080" not in message
    assert "mode RGB" in message_of(read, path, labels({7: 0, 8: 1}))
    for values, label_map in ((IDS, {7: 0, 9: 1}), (coloured(), {"#804080": 0})):
        with pytest.raises(ValueError, match="not in label_map"):  # void is no way out
            map_labels(values, parse_label_map(label_map))


@pytest.mark.parametrize(
    "bad", [{7: "road"}, {True: 1}, {"#12": 0}, {7: 0, "#000000": 1}, {"default": 0}, {7: -1}, 3,
            {"[1, 2, 3]": 0, "#010203": 1}, {7: 9}, {"[1, 2, 300]": 0}],
)  # fmt: skip
def test_bad_maps_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="label_map"):
        labels(bad)


def test_names_follow_the_ids() -> None:
    stored = ("void", "road", "pavement", "car")
    assert mapped_names(stored, parse_label_map({0: 255, 1: 0, 2: 0, 3: 1})) == (
        "road+pavement", "car",
    )  # fmt: skip
    assert mapped_names(("a", "b"), parse_label_map({0: 1, 1: 0})) == ("b", "a")
    assert mapped_names(("a", "b"), parse_label_map({7: 0, 8: 1})) == ("a", "b")
    assert mapped_names(("a", "b"), parse_label_map(BY_COLOUR)) == ("a", "b")


def test_specs_and_weights_keep_the_map() -> None:
    m = labels(BY_ID)
    spec = ModelSpec("multivit_nano", (m,), (), 8, 32)
    (again,) = ModelSpec.from_json(spec.to_json()).inputs
    assert again == m and again.label_map == ("7=0", "8=1", "default=255")
    plain = labels({})
    # Of the weights unless the user maps other files to their class ids.
    assert prepared_as(plain, m, (), 8)[0].label_map == m.label_map
    assert prepared_as(m, plain, ("label_map",), 8) == (m, [])


def test_no_data_of_tiff_files_is_a_stored_id() -> None:
    target = stored_target(labels({7: 0, 0: 1}))
    assert with_no_data(target, 9).label_map == ("0=1", "7=0", "9=255")
    assert with_no_data(target, 0).label_map == ("0=1", "7=0")  # a class by the map
    assert with_no_data(stored_target(labels({})), 9).no_data == 9


def test_lists_are_keys_in_yaml() -> None:
    text = "{[128, 64, 128]: 0, '#f423e8': 1, default: 255}"
    data = parse_config(SemsegConfig, ["--label_map", text]).data
    assert data.target().label_map == ("#804080=0", "#f423e8=1", "default=255")
    with pytest.raises(ConfigError, match="label_map.*200.*149"):
        parse_config(SemsegConfig, ["--label_map", "{7: 200}"])


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in the layout of Cityscapes: ids 1..4 stored as 11..14, and other files."""
    root = tmp_path_factory.mktemp("street")
    for split, count in (("train", 6), ("val", 3)):
        write_scenes(root / split, count)
        for path in sorted((root / split / "semseg").rglob("*.png")):
            ids = np.asarray(Image.open(path))
            name = path.with_name(f"{path.stem}_gtFine_labelIds.png")
            save(name, np.where(ids > 0, ids + 10, 0).astype(np.uint8))
            save(path.with_name(f"{path.stem}_gtFine_color.png"), ids)
            path.unlink()
    return root


def test_a_run_evaluates_and_predicts_with_its_map(street: Path, tmp_path: Path) -> None:
    label_map = "{0: 255, 11: 0, 12: 1, 13: 2, 14: 3}"
    (street / "train/classes.json").write_text(json.dumps({"classes": list("abcd")}))
    options = ["--no_seg_reduce_zero_label", "--label_suffix", "_gtFine_labelIds"]
    run_finetuning_semseg.main(
        arguments(street, tmp_path, *options, "--epochs", "1", "--label_map", label_map)
    )
    score = rows(tmp_path, "eval")[-1]["eval/mean_iou"]
    model = MultiMAE.from_pretrained(tmp_path / "model.safetensors")
    (head,) = model.spec.heads
    assert head.target.label_map == ("0=255", "11=0", "12=1", "13=2", "14=3")
    assert head.target.class_names == tuple("abcd")
    run_finetuning_semseg.main(arguments(street, tmp_path, *options, "--eval"))
    assert rows(tmp_path, "eval")[-1]["eval/mean_iou"] == score
    message = message_of(
        run_finetuning_semseg.main,
        arguments(street, "", *options, "--label_map", "{0: 255, 11: 0, 12: 1, 13: 2}"),
    )
    assert "14 (" in message and "_gtFine_labelIds.png" in message


def test_the_doctor_reads_what_training_reads(street: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "num_classes: 4\nlabel_suffix: _gtFine_labelIds\n"
        "label_map: {0: 255, 11: 0, 12: 1, 13: 2, 14: 3}\n"
    )
    out = tmp_path / "out"
    command = [str(street / "train"), "--config", str(config), "--out", str(out)]
    check_dataset.main([*command, "--modalities", "rgb-semseg"])
    findings = json.loads((out / "findings.json").read_text())["findings"]
    assert not [f for f in findings if f["severity"] == "error"]
    statistics = json.loads((out / "statistics.json").read_text())[str(street / "train")]
    assert sum(statistics["modalities"]["semseg"]["pixels"][:4]) > 0
    assert torch.tensor(statistics["modalities"]["semseg"]["pixels"][4:255]).sum() == 0
