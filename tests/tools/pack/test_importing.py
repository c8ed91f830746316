"""Data sets in other layouts become packs with the same files as packing their folder gives."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multimae.images.folders import MultiModalFolder
from multimae.images.pack.reading import PackedFolder
from tests.support.image_folders import MODALITIES, save, write_folder
from tests.support.servers import http_server
from tools import pack_dataset
from tools.pack.importing import expand
from tools.pack.members import Entry, Members, class_folders

COLUMNS = ("--columns", "rgb=jpg", "depth=depth.png", "semseg=seg.png")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("plain"))


def run(capsys: pytest.CaptureFixture[str], out: Path, *args: str | Path) -> tuple[int, str]:
    code = pack_dataset.main([*map(str, args), "--out", str(out), "--images_per_shard", "5"])
    return code, "".join(capsys.readouterr())


def originals(root: Path) -> dict[str, bytes]:
    found = {}
    for folder in sorted(path.parent for path in root.glob("*/pack.json")):
        pack = PackedFolder(folder)
        for i in range(len(pack)):
            found[f"{folder.name}/{pack.name(i)}"] = pack.original(i)
    return found


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.glob("*/*/*")}


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(plain: Path) -> dict[str, bytes]:
    """Members of a WebDataset: bath/000.jpg, bath/000.depth.png, bath/000.seg.png, ..."""
    endings = {"rgb": ".jpg", "depth": ".depth.png", "semseg": ".seg.png"}
    return {
        str(
            Path(name).relative_to(Path(name).parts[0]).with_suffix(endings[Path(name).parts[0]])
        ): d
        for name, d in sorted(files(plain).items())
    }


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_webdataset_tars(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    members = samples(plain)
    for n, part in enumerate(("bath", "kitchen")):
        chosen = {f"./{k}": v for k, v in members.items() if part in k}
        extra = {f"{part}/000.json": b"{}", f"{part}/._000.jpg": b"of macOS"}
        mode = "w" if ending == "tar" else "w:gz"
        write_tar(tmp_path / f"{n:03d}.{ending}", chosen | extra, mode)
    source = tmp_path / f"{{000..001}}.{ending}"
    code, text = run(capsys, tmp_path / "out", "--from", source, *COLUMNS)
    assert code == 0 and "2 '.json' files" in text and "12 depth" in text
    assert originals(tmp_path / "out") == files(plain)
    assert len(MultiModalFolder(tmp_path / "out", MODALITIES)) == 12
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["depth", "rgb", "semseg"]


def test_the_pack_is_that_of_the_folder(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "all.tar", samples(plain))
    options = ("--codec", "zlib", "--max_size", "32")
    run(capsys, tmp_path / "a", "--from", tmp_path / "all.tar", *COLUMNS, *options)
    run(capsys, tmp_path / "b", "--data_path", plain, *options)
    for name in ("rgb/00001.shard", "depth/00002.files", "semseg/index.npy", "rgb/names.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    before = (tmp_path / "a/rgb/pack.json").stat().st_mtime_ns
    _, text = run(capsys, tmp_path / "a", "--from", tmp_path / "all.tar", *COLUMNS, *options)
    assert "12 rgb already present" in text
    assert (tmp_path / "a/rgb/pack.json").stat().st_mtime_ns == before


def test_missing_members_are_counted(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = samples(plain)
    del members["bath/004.depth.png"]
    write_tar(tmp_path / "all.tar", members)
    code, text = run(capsys, tmp_path / "out", "--from", tmp_path / "all.tar", *COLUMNS)
    assert code == 0 and "1 of 12 samples lack 'depth': bath/004" in text and "11 depth" in text


def test_duplicate_unsafe_and_unknown_files_are_named(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = next(iter(files(plain).values()))
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {"x/1.jpg": data, f"{name}.jpg": data})
    write_tar(tmp_path / "c.tar", {"../up.jpg": data, "/root.jpg": data, "y.mp4": data})
    code, text = run(
        capsys, tmp_path / "out", "--from", tmp_path / "*.tar", "--columns", "rgb=jpg,mp4"
    )
    assert code == 2 and "4 problems" in text and "x/1 twice" in text
    assert all(str(tmp_path / f"{name}.tar: x/1.jpg") in text for name in ("a", "b"))
    assert "../up" in text and "'.mp4'" in text and not any((tmp_path / "out").iterdir())


def truncated_tar(path: Path, data: bytes) -> None:
    write_tar(path, {"1.jpg": data})
    path.write_bytes(path.read_bytes()[: 512 + len(data) // 2])


def damaged_zip(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rgb/1.jpg", data)
        archive.writestr("depth/1.png", data)
    content = bytearray(path.read_bytes())
    content[len(data) // 2] ^= 1
    path.write_bytes(content)


def no_archive(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.tar", truncated_tar),
        ("a.tar", no_archive),
        ("a.tar.gz", no_archive),
        ("a.zip", damaged_zip),
        ("a.zip", no_archive),
        ("a.parquet", no_archive),
        ("a.arrow", no_archive),
        ("a.jpg", no_archive),
    ],
)
def test_unreadable_sources_are_named(
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    write: Callable[[Path, bytes], None],
) -> None:
    write(tmp_path / name, next(d for n, d in files(plain).items() if n.endswith(".jpg")))
    columns = [] if name.endswith("zip") else ["--columns", "rgb=jpg"]
    code, text = run(capsys, tmp_path / "out", "--from", tmp_path / name, *columns)
    assert code == 2 and str(tmp_path / name) in text
    assert not list((tmp_path / "out").rglob("pack.json"))


@pytest.mark.parametrize("columns", [[], ["rgb=rgb", "depth=depth", "semseg=semseg"]])
def test_zip_files(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: list[str]
) -> None:
    shutil.make_archive(str(tmp_path / "rooms"), "zip", plain.parent, plain.name)
    args = ["--columns", *(c.replace("=", f"={plain.name}/") for c in columns)]
    code, text = run(
        capsys, tmp_path / "out", "--from", tmp_path / "rooms.zip", *(args if columns else [])
    )
    if columns:
        assert code == 0 and originals(tmp_path / "out") == files(plain)
    else:
        assert code == 2 and f"--columns rgb={plain.name}" in text
    shutil.make_archive(str(tmp_path / "flat"), "zip", plain)
    code, _ = run(capsys, tmp_path / "flat", "--from", tmp_path / "flat.zip")
    assert code == 0 and originals(tmp_path / "flat") == files(plain)


def table(plain: Path, names: list[str] | None, **columns: Any) -> pa.Table:
    photos = [(n, d) for n, d in sorted(files(plain).items()) if n.startswith("rgb")]
    depth = [d for n, d in sorted(files(plain).items()) if n.startswith("depth")]
    feature = {"_type": "ClassLabel", "names": names}
    about = {"info": {"features": {"label": feature if names else {"_type": "Value"}}}}
    values = {
        "image": [{"bytes": data, "path": None} for _, data in photos],
        "depth": depth,
        "label": [i % 3 for i in range(12)],
        "id": [n.removeprefix("rgb/").removesuffix(".jpg") for n, _ in photos],
        **columns,
    }
    return pa.table(values).replace_schema_metadata({"huggingface": json.dumps(about)})


def write_parquet(path: Path, found: pa.Table) -> Path:
    pq.write_table(found, path, row_group_size=5)
    return path


def write_saved(path: Path, found: pa.Table) -> Path:
    """Write what ``Dataset.save_to_disk`` writes."""
    path.mkdir()
    files = []
    for n, part in enumerate((found.slice(0, 7), found.slice(7))):
        files.append({"filename": f"data-{n:05d}-of-00002.arrow"})
        with pa.ipc.new_stream(path / files[-1]["filename"], found.schema) as writer:
            writer.write_table(part, max_chunksize=3)
    (path / "state.json").write_text(json.dumps({"_data_files": files}))
    (path / "dataset_info.json").write_text("{}")
    return path


@pytest.mark.parametrize("write", [write_parquet, write_saved])
def test_tables_with_named_rows(
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path, pa.Table], Path],
) -> None:
    path = write(tmp_path / "train.parquet", table(plain, None))
    columns = ("--columns", "rgb=image", "depth=depth", "--name_column", "id")
    code, _ = run(capsys, tmp_path / "out", "--from", path, *columns)
    assert code == 0
    expected = {n: d for n, d in files(plain).items() if not n.startswith("semseg")}
    assert originals(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, ["00000", "00001", "00002"]),
        (["sofa", "bed/cot", "lamp"], ["bed_cot", "lamp", "sofa"]),
        (["crane", "crane", "lamp"], ["0 crane", "1 crane", "2 lamp"]),
    ],
)
def test_classes_become_folders(
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: list[str] | None,
    expected: list[str],
) -> None:
    found = table(plain, names)
    write_parquet(tmp_path / "a.parquet", found.slice(0, 6))
    write_parquet(tmp_path / "b.parquet", found.slice(6))
    args = ("--columns", "rgb=image", "--class_column", "label")
    code, _ = run(capsys, tmp_path / "out", "--from", tmp_path / "{a,b}.parquet", *args)
    assert code == 0
    found_files = originals(tmp_path / "out")
    assert sorted({Path(n).parts[1] for n in found_files}) == expected
    first = found["image"][1]["bytes"].as_py()
    folder = class_folders(names)[1] if names else "00001"
    assert found_files[f"rgb/{folder}/a-00000001.jpg"] == first
    assert folder in expected


@pytest.mark.parametrize(
    ("columns", "args", "words"),
    [
        ({}, ["rgb=picture"], ["picture", "image (struct"]),
        ({}, ["rgb=label"], ["row 0, column label", "int"]),
        ({"depth": [b"nothing"] * 12}, ["rgb=depth"], ["row 0, column depth"]),
        ({"image": [{"bytes": None, "path": "/a.jpg"}] * 12}, ["rgb=image"], ["/a.jpg"]),
        ({"label": [-1] * 12}, ["rgb=image", "--class_column", "label"], ["-1", "row 0"]),
        ({"label": [None] * 12}, ["rgb=image", "--class_column", "label"], ["None", "row 0"]),
        ({"id": ["a"] * 12}, ["rgb=image", "--name_column", "id"], ["'rgb' has a twice"]),
    ],
)
def test_columns_that_do_not_fit_are_named(
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    columns: dict[str, Any],
    args: list[str],
    words: list[str],
) -> None:
    path = write_parquet(tmp_path / "a.parquet", table(plain, None, **columns))
    code, text = run(capsys, tmp_path / "out", "--from", path, "--columns", *args)
    assert code == 2 and str(path) in text and all(word in text for word in words)


def test_a_class_in_a_tar_is_a_member(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = next(d for n, d in files(plain).items() if n.endswith(".jpg"))
    write_tar(tmp_path / "a.tar", {"1.jpg": data, "1.cls": b"7\n", "2.cls": b"3", "2.jpg": data})
    args = ("--columns", "rgb=jpg", "--class_column", "cls")
    assert run(capsys, tmp_path / "out", "--from", tmp_path / "a.tar", *args)[0] == 0
    assert sorted(originals(tmp_path / "out")) == ["rgb/3/2.jpg", "rgb/7/1.jpg"]
    write_tar(tmp_path / "b.tar", {"3.jpg": data})
    code, text = run(capsys, tmp_path / "no", "--from", tmp_path / "?.tar", *args)
    assert code == 2 and "3 has no class" in text


def test_stores_with_modality_folders(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = shutil.copytree(plain, tmp_path / "plain")
    fsspec.filesystem("memory").put(str(plain), "/import-rooms", recursive=True)
    save(plain / "rgb/bath/with space.jpg", np.zeros((40, 52, 3), np.uint8))
    save(plain / "depth/bath/with space.png", np.zeros((40, 52), np.uint16))
    save(plain / "semseg/bath/with space.png", np.zeros((40, 52), np.uint8))
    code, text = run(capsys, tmp_path / "a", "--from", "memory://import-rooms")
    expected = {n: d for n, d in files(plain).items() if "space" not in n}
    assert code == 0 and originals(tmp_path / "a") == expected, text
    with http_server(plain) as server:
        server.drop_every = 10
        (plain / "rgb/notes.txt").write_text("notes")
        code, text = run(capsys, tmp_path / "b", "--from", server.url)
        assert "1 '.txt' files" in text
        assert code == 0 and originals(tmp_path / "b") == files(plain)
        code, text = run(capsys, tmp_path / "c", "--from", f"{server.url}/a.tar")
        assert code == 2 and f"{server.url}/a.tar" in text
        code, text = run(capsys, tmp_path / "c", "--from", f"{server.url}/nothing")
        assert code == 2 and f"{server.url}/nothing" in text


def test_other_processes_get_the_files_of_their_shard() -> None:
    entry = Entry("range", "/a.tar", "1 2", "/a.tar: x", 3, 4)
    members = Members({b"x": entry, b"y": entry._replace(offset=9)})
    part = pickle.loads(pickle.dumps(members.only([b"y"])))
    assert part.fingerprint(b"y") == members.fingerprint(b"y") != members.fingerprint(b"x")
    assert list(part.entries) == [b"y"]


def test_sources_are_expanded_in_order(tmp_path: Path) -> None:
    for name in ("a-08", "a-09", "a-10", "b-08"):
        (tmp_path / f"{name}.tar").touch()
    found = expand([f"{tmp_path}/a-{{08..10}}.tar"])
    assert [Path(p).name for p in found] == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert [Path(p).name for p in expand([f"{tmp_path}/{{b,a}}-08.tar"])] == [
        "b-08.tar",
        "a-08.tar",
    ]
    assert len(expand([f"{tmp_path}/*.tar"])) == 4
    assert expand(["s3://bucket/{a,b}"]) == ["s3://bucket/a", "s3://bucket/b"]


def test_images_of_a_table_are_named_by_content(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [{"bytes": d, "path": "x.jpg"} for n, d in files(plain).items() if "depth" in n]
    path = write_parquet(tmp_path / "a.parquet", table(plain, None, depth=wrong))
    run(capsys, tmp_path / "out", "--from", path, "--columns", "depth=depth")
    assert all(name.endswith(".png") for name in originals(tmp_path / "out"))
