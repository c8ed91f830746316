"""Indices of packs: read, checked and listed a block at a time."""

import pickle
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from numpy.lib.format import open_memmap

from multimae.images.folders import open_pack
from multimae.images.pack import PACK_FILE, names, stored_array
from multimae.images.pack.layout import RECORD, Contents, Kind, Shard, file_name
from multimae.images.pack.stored_array import StoredArray
from multimae.specs.errors import UserError
from multimae.weights.atomic import checksum

SIZES = [[3, 5, 2], [4], [1, 1, 1, 1, 1, 7]]  # by shard
FILES = sorted(f"{f}/{i}{e}" for f, e in (("a", ".png"), ("b", ".jpg")) for i in range(5))


def write_pack(folder: Path, listed: list[str] = FILES, **changes: Any) -> Path:
    """A pack of files with the sizes of :data:`SIZES`; ``field=(index, value)`` changes records."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = SIZES if len(listed) == sum(map(len, SIZES)) else [[1] * len(listed)]
    records = np.zeros(len(listed), RECORD)
    records["kind"] = Kind.FILE
    records["shard"] = [n for n, part in enumerate(sizes) for _ in part]
    records["size"] = [size for part in sizes for size in part]
    records["offset"] = [sum(part[:i]) for part in sizes for i in range(len(part))]
    for field, (index, value) in changes.items():
        records[field][index] = value
    np.save(folder / "index.npy", records)
    np.save(folder / "names.npy", np.array([name.encode() for name in listed], np.bytes_))
    for number, part in enumerate(sizes):
        (folder / file_name(number, "shard")).write_bytes(bytes(sum(part)))
    files = [Shard(p.name, *checksum(p)) for p in sorted(folder.iterdir())]
    contents = Contents({}, len(listed), ("",), tuple(f for f in files if f.name != PACK_FILE))
    (folder / PACK_FILE).write_bytes(contents.to_json())
    return folder


@pytest.fixture(params=[1, 2, 3, 4, 16])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Elements read at a time."""
    monkeypatch.setattr(stored_array, "_BLOCK", request.param)
    monkeypatch.setattr(names, "BLOCK", request.param)
    return int(request.param)


def test_a_good_index_passes(block: int, tmp_path: Path) -> None:
    pack = open_pack(write_pack(tmp_path))
    assert list(pack.names) == [name.encode() for name in FILES] and len(pack) == 10
    assert pack.names[9] == b"b/4.jpg"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"offset": (2, 7)}, "a/2.png"),
        ({"offset": (3, 10)}, "a/3.png"),
        ({"size": (9, 8)}, "b/4.jpg"),
        ({"size": (8, 2)}, "b/4.jpg"),
        ({"size": (9, 6)}, "00002.shard has 12 bytes, its records 11"),
        ({"shard": (4, 0)}, "b/4.jpg|a/4.png"),
        ({"kind": (6, 4)}, "b/1.jpg"),
        ({"kind": (6, 2)}, "b/1.jpg"),
        ({"packed": (6, 1)}, "b/1.jpg"),
        ({"file_size": (0, 2)}, "a/0.png"),
    ],
)
def test_every_record_is_compared_with_those_before(
    changes: dict[str, Any], name: str, block: int, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=name):
        open_pack(write_pack(tmp_path, **changes))


@pytest.mark.parametrize(
    ("index", "wrong"),
    [(3, "a/2.png"), (3, "a/1.png"), (0, ".."), (0, "../0.png"), (0, "./0"), (4, "a/4/..")]
    + [(4, "a/4/../x"), (4, "a//4.png"), (4, "a/4/."), (4, "a/4/"), (0, "/0"), (4, "a/4\0x")],
)
def test_every_name_is_checked(index: int, wrong: str, block: int, tmp_path: Path) -> None:
    listed = [*FILES]
    listed[index] = wrong
    with pytest.raises(UserError, match="name"):
        open_pack(write_pack(tmp_path, listed))


def test_hidden_names_are_allowed(tmp_path: Path) -> None:
    listed = sorted([".a/1..png", "a/.b/x.png", "a/...png", ".png"])
    assert list(open_pack(write_pack(tmp_path, listed)).names) == [n.encode() for n in listed]


def test_checksums_are_compared(block: int, tmp_path: Path) -> None:
    folder = write_pack(tmp_path)
    stored = open_memmap(folder / "index.npy", mode="r+")
    stored["crc"][9] = crc32(b"other")  # a field that fits anything
    stored.flush()
    with pytest.raises(UserError, match=r"index\.npy has another checksum"):
        open_pack(folder)
    assert len(open_pack(folder, check_first=9)) == 10


def test_the_first_files_alone_are_checked(tmp_path: Path) -> None:
    folder = write_pack(tmp_path, offset=(2, 7))
    assert len(open_pack(folder, check_first=2)) == 10
    with pytest.raises(UserError, match="a/2"):
        open_pack(folder, check_first=3)


ODD_NAMES = sorted(
    [
        "1.png",
        "1-2.png",
        ".png",
        "d/.png",
        "1 (3).JPG",
        "a/1.jpg",
        "a/2.png",
        "a.b/c",
        "a.b/.hidden",
        "x/y.z.tif",
    ]
    + ["no_extension", "z/é_rgb.png", "z/_rgb.png", "z/rgb.png", "zz/a_rgb", "zz/b_rgb.webp"]
)


@pytest.mark.parametrize("ending", ["", "_rgb", "_a_long_ending_that_no_name_has"])
def test_listing_splits_names_as_python_does(ending: str, block: int, tmp_path: Path) -> None:
    listed = [n.decode() for n in sorted(n.encode() for n in ODD_NAMES)]
    found = names.list_pack(open_pack(write_pack(tmp_path, listed)), ending)
    expected = {}
    for index, name in enumerate(listed):
        above, slash, file = name.rpartition("/")
        stem, dot, extension = file.rpartition(".")
        if not stem:
            stem, dot, extension = file, "", ""
        if stem.endswith(ending):
            key = (above + slash + stem).removesuffix(ending).encode()
            expected[key] = (dot + extension, index)
    assert list(found.names) == sorted(expected)
    order = found.in_pack(np.arange(len(found.names))).tolist()
    kinds = [found.extensions[kind] for kind in found.kinds.tolist()]
    assert list(zip(kinds, order, strict=True)) == [expected[key] for key in sorted(expected)]


def test_an_array_is_not_mapped_and_survives_pickling(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(5))
    array = pickle.loads(pickle.dumps(StoredArray(tmp_path / "x.npy")))
    assert [int(v) for v in array] == [0, 1, 2, 3, 4] and array[4] == 4
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    for index in (5, -1):
        with pytest.raises(IndexError):
            array[index]
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(OSError, match=r"x\.npy"):
        array.read(0, 5)


@pytest.mark.parametrize("values", [np.zeros((2, 2)), np.array([object()]), np.float32(1)])
def test_other_arrays_are_refused(values: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(ValueError):  # noqa: PT011
        StoredArray(tmp_path / "x.npy")
