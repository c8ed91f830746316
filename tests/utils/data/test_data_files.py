import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multimae.images.folders import MultiModalFolder, read_class_names
from multimae.images.pixels import ImageError, check_readable, check_same_view
from multimae.images.readers import read
from multimae.specs.modalities import Modality, default_table, make_table
from tests.support.image_folders import (
    CE,
    DEPTH,
    MODALITIES,
    RGB,
    SEMSEG,
    SIZE,
    make_dataset,
    message_of,
    save,
    write_folder,
)
from utils.data.dataset import MultiModalDataset
from utils.data.transforms import EvalTransform


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path)


def test_pairs_by_name_in_sorted_order_whatever_the_extension(tmp_path):
    for name in ("b/2", "a/10", "a/9", "top"):
        save(tmp_path / f"rgb/{name}.JPEG", np.zeros((8, 8, 3), np.uint8))
    for name in ("top", "a/9", "b/2", "a/10"):
        save(tmp_path / f"depth/{name}.tif", np.zeros((8, 8), np.uint16))
    (tmp_path / "rgb/a/notes.txt").write_text("not an image")
    (tmp_path / "rgb/a/._9.jpg").write_text("file-system litter")
    folder = MultiModalFolder(tmp_path, [RGB, DEPTH])
    assert [folder.name(i) for i in range(len(folder))] == ["a/10", "a/9", "b/2", "top"]
    for i in range(len(folder)):
        assert folder.path(i, RGB) == tmp_path / f"rgb/{folder.name(i)}.JPEG"
        assert folder.path(i, DEPTH) == tmp_path / f"depth/{folder.name(i)}.tif"


def test_extensions_may_differ_within_a_modality(tmp_path):
    for name in ("a.png", "b.jpg", "c.png"):
        save(tmp_path / "rgb" / name, np.zeros((8, 8, 3), np.uint8))
    folder = MultiModalFolder(tmp_path, [RGB])
    assert [folder.path(i, RGB).name for i in range(3)] == ["a.png", "b.jpg", "c.png"]


def test_folder_field_and_extra_targets(tmp_path):
    rows = make_table({"depth": {"folder": "pseudo_depth"}})
    save(tmp_path / "pseudo_depth/a.png", np.zeros((8, 8), np.uint16))
    save(tmp_path / "rgb/a.png", np.zeros((8, 8, 3), np.uint8))
    folder = MultiModalFolder(tmp_path, [rows["norm_rgb"], rows["rgb"], rows["depth"]])
    assert [m.name for m in folder.modalities] == ["rgb", "depth"]
    assert folder.path(0, rows["depth"]) == tmp_path / "pseudo_depth/a.png"
    with pytest.raises(ValueError, match="computed from 'rgb'"):
        MultiModalFolder(tmp_path, [rows["norm_rgb"]])


def test_names_that_do_not_match(root):
    (root / "depth/bath/000.png").unlink()
    for i in (1, 3, 5, 7):
        (root / f"semseg/kitchen/{i:03d}.png").unlink()
    message = message_of(MultiModalFolder, root, MODALITIES)
    assert f"'depth' ({root / 'depth'}): 1 of 12 missing: bath/000" in message
    assert "4 of 12 missing: kitchen/001, kitchen/003, kitchen/005, ..." in message
    assert "'rgb'" not in message
    assert "7 names are complete" in message and "add the missing files" in message


def test_same_count_but_other_names(root):
    (root / "depth/bath/000.png").rename(root / "depth/bath/999.png")
    message = message_of(MultiModalFolder, root, MODALITIES)
    assert "1 of 13 missing: bath/000" in message and "1 of 13 missing: bath/999" in message


def test_ambiguous_extensions(root):
    save(root / "rgb/bath/000.png", np.zeros((*SIZE, 3), np.uint8))
    message = message_of(MultiModalFolder, root, MODALITIES)
    assert "'rgb'" in message and "bath/000" in message and "Keep one" in message


def test_missing_modality_folders_are_all_listed(root):
    (root / "depth").rename(root / "dept")
    (root / "semseg").rename(root / "labels")
    message = message_of(MultiModalFolder, root, MODALITIES)
    assert "'depth': no folder" in message and "did you mean dept?" in message
    assert "'semseg': no folder" in message
    assert "dept, labels, rgb" in message


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: "", "data path is empty"),
        (lambda p: p / "nowhere", "does not exist"),
        (lambda p: save(p / "file.png", np.zeros((2, 2), np.uint8)), "is not a folder"),
        (lambda p: p, "has no folders in it"),
    ],
)
def test_bad_roots(tmp_path, make, expected):
    message = message_of(MultiModalFolder, make(tmp_path), MODALITIES)
    assert expected in message and "{modality}/{sub-folder}" in message


def test_no_images(tmp_path):
    (tmp_path / "rgb/a/b").mkdir(parents=True)
    message = message_of(MultiModalFolder, tmp_path, [RGB])
    assert "no images" in message and ".png" in message


def test_deeper_folders_are_read_and_ignored_files_counted(tmp_path):
    for name in ("a/b/c/1.png", "2.png"):
        save(tmp_path / "rgb" / name, np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "rgb/a/loop").symlink_to(tmp_path / "rgb")
    for name in ("x.gif", "y.gif", ".hidden.png"):
        (tmp_path / "rgb/a" / name).write_text("x")
    os.mkfifo(tmp_path / "rgb/pipe.png")
    folder = MultiModalFolder(tmp_path, [RGB])
    assert [folder.name(i) for i in range(len(folder))] == ["2", "a/b/c/1"]
    (line,) = folder.ignored_lines()
    for part in ("2 of 6 files used", "2 .gif", "1 hidden", "1 not regular files"):
        assert part in line


def test_names_of_another_unicode_form_are_shown_escaped(tmp_path):
    save(tmp_path / "rgb/caf\u00e9.png", np.zeros((8, 8, 3), np.uint8))
    save(tmp_path / "depth/cafe\u0301.png", np.zeros((8, 8), np.uint16))
    message = message_of(MultiModalFolder, tmp_path, [RGB, DEPTH], allow_missing=True)
    assert "'caf\\xe9'" in message and "'cafe\\u0301'" in message


def test_class_names(tmp_path):
    path = tmp_path / "classes.json"
    assert read_class_names(tmp_path) is None
    path.write_text(json.dumps({"classes": ["void", "wall"]}))
    assert read_class_names(tmp_path) == ("void", "wall")
    for bad in ("{", "[]", '{"classes": [1]}', '{"names": []}'):
        path.write_text(bad)
        assert str(path) in message_of(read_class_names, tmp_path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_round_trip(tmp_path, suffix):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = read(save(tmp_path / f"a.{suffix}", values), DEPTH)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, values)


def test_eight_bit_file_of_a_sixteen_bit_modality(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = read(save(tmp_path / "a.png", values), DEPTH)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, values)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_colour_modes_become_rgb(tmp_path, mode):
    red = Image.new("RGB", (6, 4), (255, 0, 0)).convert(mode)
    red.save(tmp_path / "a.tif")
    pixels = read(tmp_path / "a.tif", RGB)
    assert pixels.mode == "RGB"
    assert pixels.getpixel((0, 0)) == red.convert("RGB").getpixel((0, 0))


def test_exif_orientation_is_applied(tmp_path):
    upright = np.zeros((4, 8, 3), np.uint8)
    upright[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to view
    path = tmp_path / "a.png"
    Image.fromarray(upright).rotate(90, expand=True).save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(read(path, RGB)), upright)


def test_palette_labels_are_indices(tmp_path):
    ids = np.arange(40, dtype=np.uint8).reshape(5, 8)
    image = Image.fromarray(ids)
    image.putpalette([value for i in range(256) for value in (255 - i, 7, i)])
    image.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    np.testing.assert_array_equal(read(tmp_path / "a.png", SEMSEG), ids)


def test_sixteen_bit_labels(tmp_path):
    row = Modality("ids", "labels", num_classes=900, interpolation="nearest", loss=CE)
    ids = np.arange(880, 900, dtype=np.uint16).reshape(4, 5)
    np.testing.assert_array_equal(read(save(tmp_path / "a.png", ids), row), ids)


def bomb(path):
    """A PNG header that promises 60000 x 60000 pixels."""
    save(path, np.zeros((8, 8), np.uint8))
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def truncate(path):
    save(path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    ("row", "write", "expected"),
    [
        (RGB, lambda p: p.write_bytes(b""), "empty file (0 bytes)"),
        (RGB, lambda p: p.write_bytes(b"hello" * 99), "is not one of JPEG, PNG"),
        (RGB, truncate, "cannot be read"),
        (DEPTH, truncate, "cannot be read"),
        (DEPTH, bomb, "decompression bombs"),
        (RGB, lambda p: None, "No such file"),
        (RGB, lambda p: save(p, np.zeros((9, 9), np.uint16)), "num_channels: 3"),
        (DEPTH, lambda p: save(p, np.zeros((9, 9, 3), np.uint8)), "of mode RGB"),
        (
            Modality("thermal", num_channels=1),
            lambda p: save(p, np.zeros((9, 9), np.uint16)),
            "set max_value: 65535",
        ),
        (SEMSEG, lambda p: save(p, np.zeros((9, 9, 3), np.uint8)), "Map its colours to ids"),
        (SEMSEG, lambda p: save(p, np.full((9, 9), 41, np.uint8)), "class id 41"),
        (SEMSEG, lambda p: save(p, np.full((9, 9), 41, np.uint8)), "outside 0..40"),
        (SEMSEG, lambda p: save(p, np.full((9, 9), 300, np.uint16)), "class id 300"),
    ],
)
def test_bad_files_name_path_and_modality(tmp_path, row, write, expected):
    path = tmp_path / "bad.png"
    write(path)
    message = message_of(read, path, row)
    assert str(path) in message and f"'{row.name}'" in message and expected in message


def test_float_images_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", np.ones((8, 8), np.float32))
    assert "millimetres" in message_of(read, path, DEPTH)


def test_image_smaller_than_a_patch(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((20, 15, 3), np.uint8))
    read(path, RGB, patch_size=15)
    message = message_of(read, path, RGB, patch_size=16)
    assert str(path) in message and "20 x 15" in message and "16 x 16" in message
    read(save(tmp_path / "b.png", np.zeros((4, 4), np.uint8)), SEMSEG, patch_size=16)


@pytest.mark.parametrize(
    "row",
    [
        Modality("huge", num_channels=1, max_value=1e6),
        Modality("ids", "labels", num_classes=10**6, loss="cross_entropy", interpolation="nearest"),
    ],
)
def test_unsupported_modalities_are_errors(row):
    assert f"'{row.name}' cannot be read" in message_of(check_readable, row)


@pytest.mark.parametrize(
    "row",
    [Modality("spectral", num_channels=13), Modality("wide", num_channels=3, max_value=65535.0)],
)
def test_unsupported_image_formats_are_errors(tmp_path, row):
    path = save(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    message = message_of(read, path, row)
    assert str(path) in message and "1 to 4 channels" in message and ".npy" in message


def test_aspect_ratios_must_agree(root):
    rng = np.random.default_rng(0)
    save(root / "semseg/bath/000.png", rng.integers(0, 41, (10, 13), dtype=np.uint8))
    dataset = make_dataset(root)
    assert dataset.check(0).problems == []
    save(root / "depth/bath/000.png", np.zeros((52, 40), np.uint16))
    (message,) = dataset.check(0).problems
    assert "'depth' is" in message or "'depth' of" in message
    assert "52 x 40" in message and "aspect" in message


def test_rounded_sizes_have_the_same_aspect_ratio():
    paths = {name: Path(name) for name in ("big", "small")}
    big = np.zeros((40, 520))
    check_same_view({"big": big, "small": np.zeros((3, 33))}, paths)
    with pytest.raises(ImageError, match="'small' is 5 x 33"):
        check_same_view({"big": big, "small": np.zeros((5, 33))}, paths)


def test_undeclared_files_are_refused_before_reading(tmp_path):
    rows = [Modality("huge", num_channels=1, max_value=1e6)]
    save(tmp_path / "huge/a.png", np.zeros((8, 8), np.uint8))
    folder = MultiModalFolder(tmp_path, rows)
    assert "16 bits" in message_of(MultiModalDataset, folder, EvalTransform(rows, 8))


def test_default_table_is_readable():
    for row in default_table().values():
        check_readable(row)
