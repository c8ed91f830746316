"""TIFF: all channel layouts are read exactly; unsupported files are errors."""

from __future__ import annotations

import struct
import sys
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from multimae.images.readers import read
from multimae.specs.modalities import Modality, default_table, make_table
from tests.support.image_folders import message_of

RGB, DEPTH = default_table()["rgb"], default_table()["depth"]
LABELS = Modality("ids", "labels", num_classes=200, loss="cross_entropy", interpolation="nearest")
RNG = np.random.default_rng(0)


def row(channels: int, dtype: str = "uint8", **fields: Any) -> Modality:
    top = {"max_value": 65535} if "16" in dtype else {}
    kind = top if "int" in dtype and "32" not in dtype else {"storage": "float"}
    base = {"num_channels": channels, "plot": "grey", "plot_channels": [0]}
    return make_table({"x": {**base, **kind, **fields}})["x"]


def check(path: Path, values: np.ndarray, modality: Modality) -> None:
    pixels = np.asarray(read(path, modality))
    np.testing.assert_array_equal(pixels, values.astype(pixels.dtype))
    np.testing.assert_array_equal(pixels.astype(np.float64), values.astype(np.float64))


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 12])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "int32"])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
def test_bands(tmp_path: Path, channels: int, dtype: str, layout: str) -> None:
    values = (RNG.random((24, 32, channels)) * 200).astype(dtype)
    path = tmp_path / "a.tif"
    if layout == "pages":
        tifffile.imwrite(path, np.moveaxis(values, -1, 0), photometric="minisblack")
    else:
        stored = values if layout == "contig" else np.moveaxis(values, -1, 0)
        tifffile.imwrite(path, stored, planarconfig=layout, photometric="minisblack")
    check(path, values, row(channels, dtype))
    message = message_of(read, path, row(channels + 2, dtype))
    assert str(path) in message and "num_channels" in message


@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd", "lzma", "packbits", "lerc"])
@pytest.mark.parametrize("how", [{}, {"tile": (16, 16)}, {"byteorder": ">", "bigtiff": True}])
def test_compressed_tiled_and_big_endian(tmp_path: Path, compression: str, how: Any) -> None:
    how = {} if compression == "lerc" and "byteorder" in how else how  # which cannot be written
    for dtype in ("uint8", "uint16", "float32"):
        values = (RNG.random((40, 50)) * 200).astype(dtype)
        predictor = {} if compression in ("lerc", "packbits") else {"predictor": True}
        path = tmp_path / f"{dtype}.tif"
        tifffile.imwrite(path, values, compression=compression, **predictor, **how)
        check(path, values, row(1, dtype))


def test_overviews_and_masks_are_no_channels(tmp_path: Path) -> None:
    values = RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values, photometric="rgb", subifds=1)
        file.write(values[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(values[::4, ::4], photometric="rgb", subfiletype=1)
        file.write(values[..., 0] > 9, photometric="mask", subfiletype=4)
        file.write(values[::2, ::2, 0] > 9, photometric="mask", subfiletype=5)
    check(tmp_path / "a.tif", values, RGB)


def test_lossy_compressions_hold_no_ids(tmp_path: Path) -> None:
    path, ids = tmp_path / "a.tif", RNG.integers(0, 99, (40, 50), dtype=np.uint8)
    for error in (0, 3):
        tifffile.imwrite(path, ids, compression="lerc", compressionargs={"level": error})
        if error:
            assert "LERC with an error" in message_of(read, path, LABELS)
        else:
            check(path, ids, LABELS)
    floats = RNG.random((40, 50)).astype(np.float32)
    tifffile.imwrite(path, floats, compression="lerc", compressionargs={"level": 0.01})
    assert "LERC with an error" in message_of(read, path, row(1, "float32"))
    colours = np.stack([ids] * 3, -1)
    for lossless in (True, False):
        how = {"level": 90, "lossless": lossless}
        tifffile.imwrite(path, colours, photometric="rgb", compression="webp", compressionargs=how)
        if lossless:
            check(path, colours, row(3, "float32"))
        else:
            assert "WebP" in message_of(read, path, row(3, "float32"))


def test_pixels_that_lerc_leaves_out_are_refused(tmp_path: Path) -> None:
    values = np.ones((40, 50), np.float32)
    mask = np.ones((40, 50), bool)
    mask[:3] = False
    blob = imagecodecs.lerc_encode(values, level=0, masks=mask)
    (tmp_path / "a.tif").write_bytes(one_strip(50, 40, 34887, blob, 32, 3))
    assert "150 pixels without a value" in message_of(read, tmp_path / "a.tif", row(1, "float32"))


def test_a_second_image_is_not_passed_over(tmp_path: Path) -> None:
    page = np.ones((20, 20), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", np.stack([page, page]))
    for modality in (DEPTH, LABELS):
        assert "has 2 pages" in message_of(read, tmp_path / "a.tif", modality)
    tifffile.imwrite(tmp_path / "b.tif", np.stack([page] * 5), truncate=True)
    assert "hides further images" in message_of(read, tmp_path / "b.tif", DEPTH)


@pytest.mark.parametrize(
    ("values", "modality", "expected"),
    [
        (np.full((20, 20), -5, np.int16), DEPTH, "-5..-5, outside 0..65535"),
        (np.full((20, 20), 70000, np.int32), DEPTH, "70000"),
        (np.full((20, 20, 3), 4000, np.uint16), RGB, "4000, outside 0..255"),
        (np.full((20, 20), 1.5, np.float32), DEPTH, "storage: float"),
        (np.full((20, 20), 1e300), row(1, "float64"), "not finite"),
        (np.full((20, 20), 2**24 + 1, np.int32), row(1, "int32"), "16777217"),
        (np.full((20, 20), 201, np.uint8), LABELS, "class id 201"),
        (np.full((20, 20), -1, np.int8), LABELS, "class id -1"),
        (np.full((20, 20), 1j, np.complex64), row(1, "float32"), "complex64"),
        (np.full((20, 20, 4), 9, np.uint8), RGB, "(20, 20, 4)"),
    ],
)
def test_values_that_do_not_fit(
    tmp_path: Path, values: np.ndarray, modality: Modality, expected: str
) -> None:
    path = tmp_path / "a.tif"
    three = values.ndim == 3 and values.shape[-1] == 3
    how = {"planarconfig": "contig"} if values.ndim == 3 else {}
    tifffile.imwrite(path, values, photometric="rgb" if three else "minisblack", **how)
    message = message_of(read, path, modality)
    assert str(path) in message and expected in message


def test_alpha_is_dropped_only_if_opaque(tmp_path: Path) -> None:
    path, values = tmp_path / "a.tif", RNG.integers(0, 255, (20, 20, 4), dtype=np.uint8)
    values[..., 3] = 255
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unassalpha"])
    check(path, values[..., :3], RGB)
    check(path, values, row(4))
    values[3, 4, 3] = 254
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unassalpha"])
    assert "1 pixels are not opaque" in message_of(read, path, RGB)
    values[..., 3] = 255
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unspecified"])
    assert "(20, 20, 4)" in message_of(read, path, RGB)  # a band such as infrared


def test_gdal_no_data_must_be_declared(tmp_path: Path) -> None:
    path, values = tmp_path / "a.tif", np.full((20, 20), 3, np.float32)
    values[0] = -9999
    tifffile.imwrite(path, values, extratags=[(42113, "s", 0, "-9999", True)])
    fields = {"storage": "float", "interpolation": "nearest"}
    message = message_of(read, path, row(1, "float32", **fields))
    assert "no_data: -9999" in message and "20 values" in message
    check(path, values, row(1, "float32", **fields, no_data=-9999))
    tifffile.imwrite(path, values[1:], extratags=[(42113, "s", 0, "-9999", True)])
    check(path, values[1:], row(1, "float32", **fields))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int) -> None:
    path, values = tmp_path / "a.tif", RNG.integers(0, 9, (20, 30), dtype=np.uint16)
    tifffile.imwrite(path, values, extratags=[(274, "H", 1, orientation, True)])
    stored = Image.fromarray(values)
    turned = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }[orientation]
    check(path, np.asarray(stored if turned is None else stored.transpose(turned)), DEPTH)


def test_white_is_zero(tmp_path: Path) -> None:
    path, values = tmp_path / "a.tif", RNG.integers(0, 99, (20, 20), dtype=np.uint8)
    tifffile.imwrite(path, values, photometric="miniswhite")
    np.testing.assert_array_equal(np.asarray(read(path, RGB))[..., 1], 255 - values)
    for modality in (DEPTH, LABELS):
        assert "WhiteIsZero" in message_of(read, path, modality)


def ifd(tags: list[tuple[int, int, int, int]], after: int = 0) -> bytes:
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", after)


def one_strip(
    width: int, height: int, compression: int, strip: bytes, bits: int = 8, sample_format: int = 1
) -> bytes:
    """A grey TIFF whose only strip holds ``strip``."""
    start = 8 + 2 + 10 * 12 + 4
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, compression),
            (262, 3, 1, 1), (273, 4, 1, start), (277, 3, 1, 1), (278, 4, 1, height),
            (279, 4, 1, len(strip)), (339, 3, 1, sample_format)]  # fmt: skip
    return b"II*\0" + struct.pack("<I", 8) + ifd(tags) + strip


def hundred_thousand_pages() -> bytes:
    return b"II*\0" + struct.pack("<I", 8) + b"".join(ifd([], 14 + 6 * i) for i in range(100_000))


def huge_jpeg() -> bytes:
    sizes = struct.pack(">BHHB", 8, 65000, 65000, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", 2 + len(sizes)) + sizes + b"\xff\xda"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (hundred_thousand_pages(), "4096 pages"),
        (b"II*\0" + struct.pack("<I", 8) + ifd([], 8), "loop"),
        (b"II*\0" + struct.pack("<I", 8) + ifd([], 10**6), "cut off"),
        (one_strip(40_000, 25_000, 1, b""), "40000, more pixels"),
        (one_strip(16, 16, 8, zlib.compress(bytes(300 * 2**20))), "cannot be decoded"),
        (one_strip(16, 16, 7, huge_jpeg()), "more pixels than declared"),
        (one_strip(16, 16, 1, bytes(200)), "got 200"),
        (one_strip(16, 16, 34892, bytes(256)), "34892"),
        (b"II*\0", "cut off"),
    ],
    ids=["pages", "loop", "tail", "pixels", "zip", "jpeg", "short", "codec", "nothing"],
)
def test_bombs_and_damage_cost_one_line(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    start = time.perf_counter()
    tracemalloc.start()
    message = message_of(read, path, DEPTH)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in message and expected in message and "\n" not in message
    assert peak < 64 * 2**20 and time.perf_counter() - start < 5


def test_a_renamed_tiff_is_read_as_tiff(tmp_path: Path) -> None:
    values = RNG.integers(0, 60000, (20, 20, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.png", values, photometric="rgb", metadata=None)
    assert "outside 0..255" in message_of(read, tmp_path / "a.png", RGB)
    check(tmp_path / "a.png", values, row(3, "uint16"))


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 20), np.uint16))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert "multimae[tiff]" in message_of(read, tmp_path / "a.tif", DEPTH)
