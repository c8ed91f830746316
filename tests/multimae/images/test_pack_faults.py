"""Packs equal their folder; invalid indices are errors."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multimae.images.folders import MultiModalFolder
from multimae.images.pack.layout import RECORD, Kind
from multimae.images.pack.reading import PackedFolder
from multimae.images.pixels import ImageError
from multimae.specs.modalities import Modality, make_table
from multimae.weights.atomic import checksum
from tests.support.image_folders import MODALITIES, message_of, write_folder
from tools import pack_dataset
from tools.pack.packing import PackOptions, write_packs
from tools.pack.sources import list_images
from utils.data.statistics import measure

SIZE = (40, 64)


def pixels(*shape: int, dtype: Any = np.uint8, top: int = 255) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top + 1, shape or SIZE, dtype)


def pack(root: Path, out: Path, **options: Any) -> Path:
    write_packs(list_images(root), root, out, PackOptions(**options), workers=1)
    return out


def pages(path: Path) -> None:
    first, *rest = [Image.fromarray(pixels(*SIZE) // (i + 1)) for i in range(6)]
    first.save(path.with_suffix(".tif"), save_all=True, append_images=rest)


def npy(path: Path) -> None:
    np.save(path.with_suffix(".npy"), pixels(*SIZE, 6))


def floats(path: Path) -> None:
    image = Image.fromarray(pixels(*SIZE).astype(np.float32) / 7 - 3)
    image.save(path.with_suffix(".tiff"))


def wide_colours(path: Path) -> None:
    """A PNG of 16-bit colours, which Pillow would cut to 8 bits."""
    write_png(path, 16, 2, pixels(*SIZE, 3, dtype=np.uint16, top=65535).astype(">u2").tobytes())


def grey_bits(bits: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_png(path, bits, 0, pixels(SIZE[0], SIZE[1] * bits // 8).tobytes())

    return write


def write_png(path: Path, bits: int, colours: int, rows: bytes) -> None:
    step = len(rows) // SIZE[0]
    lines = b"".join(b"\0" + rows[i : i + step] for i in range(0, len(rows), step))

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], bits, colours, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def saved(mode: str, suffix: str, **how: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image = Image.fromarray(pixels(*SIZE, 3)).convert(mode)
        image.save(path.with_suffix(suffix), **how)

    return write


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(*SIZE, 3)).save(path.with_suffix(".png"), exif=exif)


def animated(path: Path) -> None:
    frames = [Image.fromarray(pixels(*SIZE, 3) // (i + 1)) for i in range(3)]
    frames[0].save(
        path.with_suffix(".webp"), save_all=True, append_images=frames[1:], lossless=True
    )


KEPT: dict[str, Callable[[Path], None]] = {
    "six pages": pages,
    "npy": npy,
    "float TIFF": floats,
    "16-bit colour": wide_colours,
    **{f"{bits}-bit grey": grey_bits(bits) for bits in (1, 2, 4)},
    "palette with transparency": saved("P", ".png", transparency=3),
    "alpha": saved("RGBA", ".png"),
    "grey with alpha": saved("LA", ".png"),
    "transparent colour": saved("RGB", ".png", transparency=(1, 2, 3)),
    "animated": animated,
    "CMYK": saved("CMYK", ".jpg"),
}
"""Files that stored pixels or a smaller image would not hold completely."""
PIXELS = {"rotated by EXIF": turned, "palette": saved("P", ".png"), "BMP": saved("RGB", ".bmp")}


@pytest.mark.parametrize("max_size", [None, 32])
@pytest.mark.parametrize("kind", KEPT)
def test_a_pack_keeps_every_value(kind: str, max_size: int | None, tmp_path: Path) -> None:
    folder = tmp_path / "plain/rgb/a"
    folder.mkdir(parents=True)
    KEPT[kind](folder / "0")
    (path,) = folder.iterdir()
    out = pack(tmp_path / "plain", tmp_path / "out", max_size=max_size, jpeg="raw")
    stored = PackedFolder(out / "rgb").read(0)
    if kind != "1-bit grey" or max_size is None:
        assert stored == path.read_bytes()
    arguments = ["--data_path", str(out), "--out", str(tmp_path / "again"), "--unpack"]
    assert pack_dataset.main(arguments) == 0
    unpacked = tmp_path / "again/rgb/a" / path.name
    if kind != "1-bit grey" or max_size is None:
        assert unpacked.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels_of_a_pack_are_those_of_the_file(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "plain/rgb/a"
    folder.mkdir(parents=True)
    PIXELS[kind](folder / "0")
    rgb = MODALITIES[0]
    out = pack(tmp_path / "plain", tmp_path / "out")
    ours, theirs = (
        MultiModalFolder(root, [rgb]).read(0, rgb) for root in (out, tmp_path / "plain")
    )
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_six_pages_are_six_channels_in_a_pack(tmp_path: Path) -> None:
    bands = make_table({"bands": {"kind": "image", "num_channels": 6, "normalization": "computed"}})
    modality: Modality = bands["bands"]
    folder = tmp_path / "plain/bands/a"
    folder.mkdir(parents=True)
    pages(folder / "0")
    out = pack(tmp_path / "plain", tmp_path / "out", max_size=32)
    found = np.asarray(MultiModalFolder(out, [modality]).read(0, modality))
    expected = np.asarray(MultiModalFolder(tmp_path / "plain", [modality]).read(0, modality))
    assert found.shape == (*SIZE, 6) and np.array_equal(found, expected)


def test_what_cannot_be_downscaled_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "plain/thermal/a"
    folder.mkdir(parents=True)
    npy(folder / "0")
    arguments = ["--data_path", str(tmp_path / "plain"), "--out", str(tmp_path / "out")]
    assert pack_dataset.main([*arguments, "--max_size", "32"]) == 0
    assert "1 thermal packed at full size" in capsys.readouterr().out


def test_statistics_and_packing_read_packs(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "plain")
    out = pack(root, tmp_path / "out")
    stored = [m for m in MODALITIES if m.source is None]
    expected, found = (measure(MultiModalFolder(r, stored), stored) for r in (root, out))
    assert found == expected and expected["rgb"].images == 12
    again = pack(out, tmp_path / "again")
    assert list_images(again) == list_images(root)
    assert (again / "depth/00000.files").read_bytes() == (out / "depth/00000.files").read_bytes()
    bare = pack(root, tmp_path / "bare", keep_files=False)
    assert "--no_files" in message_of(pack, bare, tmp_path / "more")


def test_a_pack_is_not_written_into_its_source(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "plain")
    before = sorted(root.rglob("*"))
    for out in (root, root / "packed"):
        assert pack_dataset.main(["--data_path", str(root), "--out", str(out)]) == 2
    assert sorted(root.rglob("*")) == before


def unknown_kind(record: np.void) -> np.void:
    """The record as one of an unknown kind, whose size fits a byte per pixel."""
    record = record.copy()
    record["kind"], record["height"] = 9, record["height"] * 2
    return record


def as_bytes(records: np.ndarray) -> np.ndarray:
    """16-bit pixels as twice as many of 8 bits."""
    records = records.copy()
    records["kind"], records["width"] = Kind.GREY8, 2 * records["width"]
    return records


def turned_record(record: np.void) -> np.void:
    record = record.copy()
    record["height"], record["width"] = record["width"] * 2, record["height"] // 2
    return record


SPOILT: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "kind and shape that fit": lambda r, n: r.__setitem__(slice(None), as_bytes(r)),
    "shape that fits": lambda r, n: r.__setitem__(3, turned_record(r[3])),
    "name that fits": lambda r, n: n.__setitem__(0, n[0].replace(b".png", b".bmp")),
    "kind": lambda r, n: r["kind"].__setitem__(3, 9),
    "kind of that size": lambda r, n: r.__setitem__(3, unknown_kind(r[3])),
    "packed": lambda r, n: r["packed"].__setitem__(3, 2),
    "offset beyond the shard": lambda r, n: r["offset"].__setitem__(3, 2**63),
    "offset of another file": lambda r, n: r["offset"].__setitem__(3, r["offset"][2]),
    "size": lambda r, n: r["size"].__setitem__(3, 2**64 - 1),
    "size that wraps": lambda r, n: r["size"].__setitem__(3, 2**64 - int(r["size"][3])),
    "shape": lambda r, n: r["height"].__setitem__(3, 41),
    "huge shape": lambda r, n: r["width"].__setitem__(3, 2**32 - 1),
    "no shape": lambda r, n: r["width"].__setitem__(3, 0),
    "shard": lambda r, n: r["shard"].__setitem__(3, 7),
    "original": lambda r, n: r["file_offset"].__setitem__(3, 1),
    "order": lambda r, n: n.__setitem__(slice(None), n[::-1].copy()),
    "twice": lambda r, n: n.__setitem__(3, n[2]),
    "outside": lambda r, n: n.__setitem__(0, b"../0.png"),
    "absolute": lambda r, n: n.__setitem__(0, b"/0.png"),
    "empty name": lambda r, n: n.__setitem__(0, b""),
}


@pytest.mark.parametrize("field", SPOILT)
def test_every_field_of_an_index_is_checked(field: str, tmp_path: Path) -> None:
    out = pack(write_folder(tmp_path / "plain"), tmp_path / "out", codec="none")
    records, names = (np.load(out / "depth" / f"{n}.npy") for n in ("index", "names"))
    SPOILT[field](records, names)
    np.save(out / "depth/index.npy", records)
    np.save(out / "depth/names.npy", names)
    message = message_of(MultiModalFolder, out, MODALITIES)
    assert str(out / "depth/index.npy") in message


@pytest.mark.parametrize("field", ["name", "size", "count"])
def test_every_field_of_the_contents_is_checked(field: str, tmp_path: Path) -> None:
    out = pack(write_folder(tmp_path / "plain"), tmp_path / "out")
    path = out / "depth/pack.json"
    content = json.loads(path.read_text())
    if field == "count":
        content["count"] = -1
    else:
        content["files"][0][field] = "../../secret" if field == "name" else "10"
    path.write_text(json.dumps(content))
    assert str(path) in message_of(MultiModalFolder, out, MODALITIES)


@pytest.mark.parametrize("byte", [0, 700, -1])
@pytest.mark.parametrize("codec", ["none", "zlib"])
def test_every_read_compares_the_checksum(byte: int, codec: str, tmp_path: Path) -> None:
    out = pack(write_folder(tmp_path / "plain"), tmp_path / "out", codec=codec)
    folder = MultiModalFolder(out, MODALITIES)
    depth = folder.modalities[1]
    path = out / "depth/00000.shard"
    spoilt = bytearray(path.read_bytes())
    size = int(np.load(out / "depth/index.npy")["size"][0])
    spoilt[byte % size] ^= 4
    path.write_bytes(spoilt)
    with pytest.raises(ImageError, match="wrong checksum"):
        folder.read(0, depth)
    assert folder.read(1, depth) is not None


def list_files(folder: Path) -> None:
    """Write sizes and checksums of changed files to ``pack.json``."""
    contents = json.loads((folder / "pack.json").read_text())
    for file in contents["files"]:
        file["size"], file["digest"] = checksum(folder / file["name"])
    (folder / "pack.json").write_text(json.dumps(contents))


def test_inflating_stops_at_the_known_size(tmp_path: Path) -> None:
    out = pack(write_folder(tmp_path / "plain"), tmp_path / "out", codec="zlib")
    folder = out / "depth"
    records = np.load(folder / "index.npy").astype(RECORD)
    bomb = zlib.compress(bytes(2**26), 9)
    shard = folder / "00000.shard"
    content = bomb + shard.read_bytes()[int(records["size"][0]) :]
    shard.write_bytes(content)
    records["offset"][1:] += np.uint64(len(bomb)) - records["size"][0]
    records["size"][0] = len(bomb)
    np.save(folder / "index.npy", records)
    contents = json.loads((folder / "pack.json").read_text())
    contents["version"] = 1  # CRC-32, which is easy to forge here
    (folder / "pack.json").write_text(json.dumps(contents))
    records["crc"][0] = zlib.crc32(bomb)
    np.save(folder / "index.npy", records)
    list_files(folder)
    packed = PackedFolder(folder)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="does not inflate to"):
            packed.read(0)
        assert tracemalloc.get_traced_memory()[1] < 2**22  # of 2**26
    finally:
        tracemalloc.stop()


def as_version_1(folder: Path, first: bytes) -> None:
    """Turn a pack of one pixel record into one of the first version."""
    records = np.load(folder / "index.npy")
    shard = (folder / "00000.shard").read_bytes()
    records["crc"] = zlib.crc32(shard)
    records["digest"] = np.void(blake2b(first, digest_size=16).digest())
    records["file_size"] = len(first)
    (folder / "00000.files").write_bytes(first)
    np.save(folder / "index.npy", records)
    contents = json.loads((folder / "pack.json").read_text())
    contents["version"] = 1
    (folder / "pack.json").write_text(json.dumps(contents))
    list_files(folder)


def test_packs_of_the_first_version_are_read_and_give_no_cut_values(tmp_path: Path) -> None:
    folder = tmp_path / "plain/rgb/a"
    folder.mkdir(parents=True)
    good = folder / "0.png"
    Image.fromarray(pixels(*SIZE, 3)).save(good)
    out = pack(tmp_path / "plain", tmp_path / "out")
    as_version_1(out / "rgb", good.read_bytes())
    stored = PackedFolder(out / "rgb").read(0)
    assert np.array_equal(np.asarray(stored), np.asarray(Image.open(good)))
    wide_colours(folder / "wide")
    wide = (folder / "wide.png").read_bytes()
    as_version_1(out / "rgb", wide)
    assert PackedFolder(out / "rgb").read(0) == wide


def test_unpacking_follows_no_links(tmp_path: Path) -> None:
    out = pack(write_folder(tmp_path / "plain"), tmp_path / "out")
    (tmp_path / "theirs").mkdir()
    (out / "secret.txt").symlink_to(__file__)
    again = tmp_path / "again"
    again.mkdir()
    arguments = ["--data_path", str(out), "--out", str(again), "--unpack"]
    assert pack_dataset.main(arguments) == 0 and not (again / "secret.txt").exists()
    shutil.rmtree(again / "rgb")
    (again / "rgb").symlink_to(tmp_path / "theirs")
    assert pack_dataset.main(arguments) == 2
    assert not list((tmp_path / "theirs").iterdir())


def test_a_lossy_label_map_is_refused_from_a_pack_too(tmp_path: Path) -> None:
    folder = tmp_path / "plain/semseg/a"
    folder.mkdir(parents=True)
    saved("RGB", ".jpg")(folder / "0")
    saved("L", ".jpg")(folder / "1")
    semseg = next(m for m in MODALITIES if m.is_labels)
    for root in (tmp_path / "plain", pack(tmp_path / "plain", tmp_path / "out", jpeg="raw")):
        for index in (0, 1):
            with pytest.raises(ImageError, match="JPEG"):
                MultiModalFolder(root, [semseg]).read(index, semseg)
