"""Formats other than TIFF and PNG: exact values or an error; only regular files are opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from multimae.images.pixels import ImageError
from multimae.images.readers import SUFFIXES, read, read_fast, to_pixels
from multimae.specs.modalities import Modality, default_table, make_table
from tests.support.image_folders import message_of

RGB, DEPTH = default_table()["rgb"], default_table()["depth"]
LABELS = Modality("ids", "labels", num_classes=200, loss="cross_entropy", interpolation="nearest")
RNG = np.random.default_rng(0)
GREY16 = RNG.integers(0, 4000, (40, 50), dtype=np.uint16)
COLOURS = RNG.integers(0, 255, (40, 50, 3), dtype=np.uint8)


def test_extensions_are_known() -> None:
    for name in ("jfif", "jpe", "ppm", "pgm", "pnm", "avif", "jp2", "jpx", "j2k"):
        assert f".{name}" in SUFFIXES


@pytest.mark.parametrize("suffix", ["jp2", "j2k"])
def test_jpeg_2000_depth_has_the_values_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    values = GREY16 * 16 + 3
    Image.fromarray(values).save(path, "JPEG2000", irreversible=False)
    np.testing.assert_array_equal(read(path, DEPTH), values)
    ids = (COLOURS[..., 0] % 200).astype(np.uint8)
    for irreversible in (False, True):  # a reversible file may lack coding passes
        Image.fromarray(ids).save(path, "JPEG2000", irreversible=irreversible)
        assert "class ids" in message_of(read, path, LABELS)
        assert "values of 16 bits" in message_of(read, path, DEPTH)


def test_floats_and_depth_are_not_read_from_lossy_files(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)
    floats = make_table({"x": {"num_channels": 1, "storage": "float", "plot": "scalar"}})["x"]
    bytes_only = make_table({"x": {"num_channels": 1, "plot": "scalar"}})["x"]
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth).save(path, quality=95)
    for row, content in ((DEPTH, "values of 16 bits"), (floats, "floats")):
        assert content in message_of(read, path, row)
        assert content in message_of(read_fast, str(path), row, 1, path.read_bytes())
    assert np.asarray(read(path, bytes_only)).shape == (40, 50)
    deep = smooth.astype(np.uint16) * 500
    Image.fromarray(deep).save(tmp_path / "a.jpx", "JPEG2000", irreversible=True)
    assert np.abs(np.asarray(read(tmp_path / "a.jpx", DEPTH)).astype(int) - deep).max() < 64
    assert "floats" in message_of(read, tmp_path / "a.jpx", floats)


def test_jpeg_2000_of_12_bits_is_not_shifted_and_colours_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jp2"
    path.write_bytes(imagecodecs.jpeg2k_encode(GREY16, bitspersample=12, reversible=True, level=0))
    np.testing.assert_array_equal(read(path, DEPTH), GREY16)
    path.write_bytes(imagecodecs.jpeg2k_encode(np.stack([GREY16] * 3, -1), reversible=True))
    assert "16 bits per channel" in message_of(read, path, RGB)
    signed = imagecodecs.jpeg2k_encode(GREY16.astype(np.int16), reversible=True)
    path.write_bytes(signed)
    assert "signed" in message_of(read, path, DEPTH)


def test_portable_maps_have_the_values_written(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    size = b"%d %d" % (50, 40)
    path.write_bytes(b"P5\n# twelve bits\n" + size + b"\n65535\n" + GREY16.astype(">u2").tobytes())
    np.testing.assert_array_equal(read(path, DEPTH), GREY16)
    text = b" ".join(b"%d" % v for v in GREY16.reshape(-1))
    path.write_bytes(b"P2 " + size + b" 4095\n" + text)
    assert "max_value: 4095" in message_of(read, path, DEPTH)
    twelve = make_table({"d": {"num_channels": 1, "max_value": 4095, "plot": "scalar"}})["d"]
    np.testing.assert_array_equal(read(path, twelve), GREY16)
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6 " + size + b" 255\n" + COLOURS.tobytes())
    np.testing.assert_array_equal(np.asarray(read(path, RGB)), COLOURS)
    wide = np.stack([GREY16] * 3, -1)
    path.write_bytes(b"P6 " + size + b" 65535\n" + wide.astype(">u2").tobytes())
    assert "outside 0..255" in message_of(read, path, RGB)
    assert "(40, 50, 3)" in message_of(read, path, LABELS)
    for damage in (b"P6 " + size + b" 255\n" + b"short", b"P6 99999 99999 255\n", b"P4 8 8\n" * 9):
        path.write_bytes(damage)
        assert str(path) in message_of(read, path, RGB)


def test_avif_photos_are_read_and_ids_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    flat = np.full_like(COLOURS, 90)
    Image.fromarray(flat).save(path, quality=100)
    assert np.abs(np.asarray(read(path, RGB)).astype(int) - flat).max() <= 3
    assert "changes values" in message_of(read, path, LABELS)
    path.write_bytes(imagecodecs.avif_encode(flat.astype(np.uint16) * 4, bitspersample=10))
    assert "16 bits per channel" in message_of(read, path, RGB)


def test_lossy_webp_holds_no_ids(tmp_path: Path) -> None:
    ids = (COLOURS % 200).astype(np.uint8)
    path = tmp_path / "a.webp"
    Image.fromarray(ids).save(path, lossless=True)
    np.testing.assert_array_equal(np.asarray(read(path, RGB)), ids)
    Image.fromarray(ids).save(path, quality=90)
    assert "changes values" in message_of(read, path, LABELS)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    image = Image.new("RGB", (20, 20), (0, 0, 0)).convert(mode)
    image.save(path)
    assert np.asarray(read(path, RGB)).max() == 0
    if mode in ("P", "RGB"):
        image.save(path, transparency=image.getpixel((0, 0)))
    else:
        image.putalpha(Image.new("L", (20, 20), 254))
        image.save(path)
    assert "400 pixels are not opaque" in message_of(read, path, RGB)


def test_animations_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), (80 * i, 0, 0)) for i in range(3)]
    for name in ("a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert "3 frames" in message_of(read, tmp_path / name, RGB)


def special(kind: str, path: Path) -> Any:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(os.path.relpath(path))
        return server
    return None


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket"])
@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.tif", "a.jp2", "a.unknown"])
def test_only_regular_files_are_opened(
    tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keep = special(kind, tmp_path / name)
    with pytest.raises(ImageError, match="not a regular file") as caught:
        to_pixels(tmp_path / name, DEPTH)
    assert str(tmp_path / name) in str(caught.value)
    if keep is not None:
        keep.close()


def test_files_of_gigabytes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as stream:
        stream.truncate(5 * 2**30)  # sparse
    assert str(5 * 2**30) in message_of(read, path, RGB)
