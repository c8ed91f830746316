"""Preparation of ADE20K."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.image_folders import save
from tests.support.prepared import digests, files_of, pixels, read_all, refusal, stamps, train_set
from tools import prepare_ade20k

FOLDERS = {"training": ("train", 4), "validation": ("val", 2)}


def write_source(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder, (short, count) in FOLDERS.items():
        for i in range(1, count + 1):
            size = (40 + i, 56)
            ids = rng.integers(0, 151, size, np.uint8)
            ids[0, :3] = 0, 1, 150
            name = f"ADE_{short}_{i:08d}"
            image = rng.integers(0, 256, (*size, 3), np.uint8)
            save(root / "images" / folder / f"{name}.jpg", image)
            save(root / "annotations" / folder / f"{name}.png", ids)
    rows = [f"{i}\t0.1\t10\t2\tthing {i}, object {i}" for i in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "ADEChallengeData2016")


def arguments(source: Path, out: Path, *more: str) -> list[str]:
    return ["--source", str(source), "--out", str(out), *more]


def labels_of(source: Path, name: str = "ADE_train_00000002") -> Path:
    return source / "annotations/training" / f"{name}.png"


@pytest.mark.parametrize("link", ["hard", "symlink", "copy"])
def test_files_are_linked_unchanged(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], link: str
) -> None:
    out = tmp_path / "out"
    given = arguments(source, out, "--link", link)
    assert prepare_ade20k.main(given) == 0
    assert capsys.readouterr().out == f"ade20k: train 4 written; val 2 written -> {out}\n"
    for folder, (short, count) in FOLDERS.items():
        for i in range(1, count + 1):
            name = f"ADE_{short}_{i:08d}"
            for part, made in (
                ("images", f"rgb/all/{name}.jpg"),
                ("annotations", f"semseg/all/{name}.png"),
            ):
                origin = source / part / folder / f"{name}{made[-4:]}"
                path = out / short / made
                assert path.read_bytes() == origin.read_bytes()
                assert path.is_symlink() == (link == "symlink")
                assert os.path.samefile(path, origin) == (link != "copy")
    assert len(files_of(out)) == 2 * 6 + 2
    names = json.loads((out / "val/classes.json").read_text())["classes"]
    assert len(names) == 151 and names[:2] == ["void", "thing 1, object 1"]
    before = stamps(out)
    assert prepare_ade20k.main(given) == 0
    assert "train 4 already present" in capsys.readouterr().out and stamps(out) == before
    assert prepare_ade20k.main([*given, "--overwrite", "--workers", "2"]) == 0
    assert not (out / ".tmp").exists() and len(files_of(out)) == 2 * 6 + 2
    assert pixels(out / "val/semseg/all/ADE_val_00000001.png")[0, :3].tolist() == [0, 1, 150]


def test_other_links_replace_the_old_and_a_folder_onto_itself_is_safe(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for link in ("symlink", "hard", "copy", "symlink", "copy"):
        assert prepare_ade20k.main(arguments(source, out, "--link", link, "--overwrite")) == 0
        path = out / "train/rgb/all/ADE_train_00000001.jpg"
        origin = source / "images/training/ADE_train_00000001.jpg"
        assert path.is_symlink() == (link == "symlink")
        assert (path.stat().st_ino == origin.stat().st_ino) == (link != "copy")
        assert not origin.is_symlink() and Image.open(origin).size == (56, 41)


def test_links_that_the_file_system_refuses(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def another_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", another_disk)
    text = refusal(prepare_ade20k, arguments(source, tmp_path / "out"), capsys)
    assert "--link copy" in text and "cross-device" in text
    assert prepare_ade20k.main(arguments(source, tmp_path / "out", "--link", "copy")) == 0


def test_images_without_labels_are_skipped(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(labels_of(source), np.zeros((42, 56), np.uint8))
    assert prepare_ade20k.main(arguments(source, tmp_path / "out")) == 0
    assert "train 1 all void, skipped, 3 written" in capsys.readouterr().out
    assert not (tmp_path / "out/train/rgb/all/ADE_train_00000002.jpg").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((42, 56), 151, np.uint8), "class id 151 is outside 0..150"),
        (np.ones((56, 42), np.uint8), "is 56 x 42 (H x W) but its image 42 x 56"),
        (np.ones((42, 56, 3), np.uint8), "mode RGB"),
    ],
)
def test_bad_label_maps(source, tmp_path, capsys, labels, message) -> None:
    save(labels_of(source), labels)
    text = refusal(prepare_ade20k, arguments(source, tmp_path / "out"), capsys)
    assert message in text and "ADE_train_00000002.png" in text
    # The others are done, and the rest follows once the file is fixed.
    assert len(files_of(tmp_path / "out/train/rgb")) == 3
    save(labels_of(source), np.ones((42, 56), np.uint8))
    assert prepare_ade20k.main(arguments(source, tmp_path / "out")) == 0
    assert "train 3 already present, 1 written" in capsys.readouterr().out


def test_bad_folders(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert "ADEChallengeData2016" in refusal(prepare_ade20k, arguments(tmp_path, out), capsys)
    labels_of(source).write_bytes(b"cut")
    assert "cannot be read" in refusal(prepare_ade20k, arguments(source, out), capsys)
    labels_of(source).unlink()
    (source / "images/validation/ADE_val_00000001.jpg").unlink()
    text = refusal(prepare_ade20k, arguments(source, out), capsys)
    assert "5 images, 5 annotations; missing files: 2" in text
    assert str(labels_of(source)) in text and "ADE_val_00000001.jpg" in text


def test_many_problems_fit_one_screen_and_stop_early(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "ade"
    for i in range(30):
        save(source / f"images/training/{i}.jpg", np.zeros((8, 8, 3), np.uint8))
        save(source / f"annotations/training/{i}.png", np.full((8, 8), 200, np.uint8))
    for part in ("images", "annotations"):
        (source / part / "validation").mkdir()
    for workers in ("1", "2"):
        given = arguments(source, tmp_path / "out", "--workers", workers)
        text = refusal(prepare_ade20k, given, capsys, lines=13)
        assert "20 problems" in text and "and 10 more" in text


def test_the_published_configuration_reads_it(source: Path, tmp_path: Path) -> None:
    assert prepare_ade20k.main(arguments(source, tmp_path / "out")) == 0
    config = "semseg/ade/ft_ade_64e_multimae-b_rgb.yaml"
    for split, count in FOLDERS.values():
        dataset = train_set(config, tmp_path / "out", split)
        assert len(dataset) == count
        read_all(dataset)
    assert digests(source).keys() == digests(write_source(tmp_path / "again")).keys()
