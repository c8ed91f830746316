"""Preparation of Taskonomy from all layouts of its download."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.image_folders import save
from tests.support.prepared import WORLD, digests, files_of, read_all, refusal, stamps
from tools import prepare_taskonomy
from utils.config.parse import parse_config
from utils.config.taskonomy_options import TaskonomyConfig
from utils.data.sets.taskonomy_views import TaskonomyFolder, buildings_of, taskonomy_modalities
from utils.tasks.taskonomy import TaskonomyFinetuning

TASKS = ("rgb", "depth_zbuffer", "edge_texture", "normal")
SPLIT = {"allensville": "train", "beechwood": "train", "corozal": "val", "darden": "test"}
VIEWS = ("point_0_view_0", "point_0_view_1", "point_17_view_3")


def image(task: str, building: str, view: str) -> np.ndarray:
    rng = np.random.default_rng([len(task), *building.encode(), *view.encode()])
    if task in ("rgb", "normal"):
        return rng.integers(0, 256, (80, 80, 3), np.uint8)
    return rng.integers(100, 8000, (80, 80), np.uint16)


def files(building: str) -> list[tuple[str, str, np.ndarray]]:
    """Task, name and pixels of every file of a building."""
    return [
        (task, f"{view}_domain_{task}.png", image(task, building, view))
        for task in TASKS
        for view in VIEWS
    ]


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_download(root: Path, form: str) -> Path:
    for building in (*SPLIT, "unlisted"):
        for task, name, array in files(building):
            if form == "training":
                save(root / task / building / name, array)
            elif form == "omnidata":
                save(root / task / "taskonomy" / building / name, array)
            elif form == "building":
                save(root / building / task / name, array)
            elif form == "unpacked":
                save(root / f"{building}_{task}" / task / name, array)
        if form.startswith("tar"):
            for task in TASKS:
                members = {f"{task}/{n}": png(a) for t, n, a in files(building) if t == task}
                members[f"{task}/readme.txt"] = b"not an image"
                folder = root / building if form == "tar nested" else root
                write_tar(folder / f"{building}_{task}.tar", members)
    save(root / "mask_valid" / "allensville" / "point_0_view_0_domain_depth_zbuffer.png", array)
    return root


def write_split(path: Path) -> Path:
    lines = ["id,train,val,test"]
    lines += [
        f"{b},{','.join(str(int(s == t)) for t in ('train', 'val', 'test'))}"
        for b, s in SPLIT.items()
    ]
    lines += ["elsewhere,0,0,0"]
    path.write_text("\n".join(lines) + "\n")
    return path


def arguments(tmp_path: Path, *more: str) -> list[str]:
    return [
        *("--source", str(tmp_path / "download"), "--out", str(tmp_path / "out")),
        *("--split_csv", str(write_split(tmp_path / "train_val_test_tiny.csv")), *more),
    ]


@pytest.mark.parametrize(
    "form", ["training", "omnidata", "building", "unpacked", "tar", "tar nested"]
)
def test_every_form_of_the_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    write_download(tmp_path / "download", form)
    out = tmp_path / "out"
    assert prepare_taskonomy.main(arguments(tmp_path)) == 0
    assert capsys.readouterr().out == (
        f"taskonomy: train 6 written; val 3 written; test 3 written -> {out}; 4 buildings, "
        "4 tasks; 1 buildings are in no split\n"
    )
    expected = [f"{t}/{b}/{name}" for b in SPLIT for t, name, _ in files(b)]
    assert files_of(out) == sorted([*expected, "splits.json"])
    for building in SPLIT:
        for task, name, array in files(building):
            with Image.open(out / task / building / name) as stored:
                np.testing.assert_array_equal(np.asarray(stored), array)
    for split in ("train", "val", "test"):
        wanted = {building for building, s in SPLIT.items() if s == split}
        assert buildings_of(out, split) == wanted


def test_tasks_can_be_chosen_and_follow_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_download(tmp_path / "download", "tar")
    assert prepare_taskonomy.main(arguments(tmp_path, "--tasks", "normal")) == 0
    assert "training also needs rgb, depth_zbuffer" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"normal", "splits.json"}
    before = stamps(tmp_path / "out")
    assert prepare_taskonomy.main(arguments(tmp_path, "--workers", "2")) == 0
    after = stamps(tmp_path / "out")
    assert len(after) == 48 and before.items() <= after.items()
    assert "Known: depth_zbuffer" in refusal(
        prepare_taskonomy, arguments(tmp_path, "--tasks", "normals"), capsys
    )


@pytest.mark.parametrize("form", ["training", "tar"])
def test_a_second_run_keeps_files_and_makes_missing_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    write_download(tmp_path / "download", form)
    out = tmp_path / "out"
    assert prepare_taskonomy.main(arguments(tmp_path, "--link", "copy")) == 0
    first, times = digests(out), stamps(out)
    lost = "normal/beechwood/point_0_view_1_domain_normal.png"
    (out / lost).unlink()
    capsys.readouterr()
    assert prepare_taskonomy.main(arguments(tmp_path, "--link", "copy")) == 0
    assert "train 5 already present, 1 written" in capsys.readouterr().out
    assert digests(out) == first
    assert {name for name, time in stamps(out).items() if time != times[name]} <= {lost}
    assert prepare_taskonomy.main(arguments(tmp_path, "--link", "copy", "--overwrite")) == 0
    assert digests(out) == first and not (out / ".tmp").exists()


@pytest.mark.parametrize("link", ["hard", "symlink", "copy"])
def test_a_folder_can_be_prepared_in_place(tmp_path: Path, link: str) -> None:
    root = write_download(tmp_path / "download", "training")
    before = digests(root)
    given = [*arguments(tmp_path, "--link", link, "--overwrite"), "--out", str(root)]
    assert prepare_taskonomy.main(given) == 0
    after = digests(root)
    assert json.loads((root / "splits.json").read_text())["val"] == ["corozal"]
    del after["splits.json"]
    assert after == before and not any(p.is_symlink() for p in root.rglob("*"))


def test_incomplete_views_are_named_or_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_download(tmp_path / "download", "building")
    (root / "allensville/normal/point_0_view_1_domain_normal.png").unlink()
    text = refusal(prepare_taskonomy, arguments(tmp_path), capsys)
    assert (
        "building allensville: 1 views lack files, e.g. point_0_view_1" in text
        and "no normal" in text
    )
    assert not (tmp_path / "out/rgb/allensville").exists()
    for path in (root / "corozal/rgb").iterdir():
        path.unlink()
    (root / "corozal/rgb").rmdir()
    text = refusal(prepare_taskonomy, arguments(tmp_path), capsys)
    assert "corozal: no rgb" in text and "4 of the 4 buildings" in text
    assert prepare_taskonomy.main(arguments(tmp_path, "--skip_incomplete")) == 0
    line = capsys.readouterr().out
    assert "1 incomplete, skipped, 2 written; val" in line and "val 3 incomplete, skipped" in line
    # What is there is paired, in the reader's eyes, too.
    rows = [taskonomy_modalities()[task] for task in TASKS]
    folder = TaskonomyFolder(tmp_path / "out", rows, buildings_of(tmp_path / "out", "train"))
    assert len(folder) == 5


def hostile(kind: str) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo("normal/point_0_view_9_domain_normal.png")
    if kind == "up":
        member.name = "../../point_0_view_9_domain_normal.png"
    elif kind == "absolute":
        member.name = "/tmp/point_0_view_9_domain_normal.png"
    elif kind in ("symlink", "hardlink"):
        member.type = tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE
        member.linkname = "/etc/passwd"
    elif kind == "device":
        member.type = tarfile.CHRTYPE
    data = b"" if kind not in ("up", "absolute") else b"x"
    member.size = len(data)
    return member, data


@pytest.mark.parametrize("kind", ["up", "absolute", "symlink", "hardlink", "device"])
def test_hostile_archives_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    root = write_download(tmp_path / "download", "tar")
    member, data = hostile(kind)
    with tarfile.open(root / "allensville_normal.tar", "a") as tar:
        tar.addfile(member, io.BytesIO(data))
    everything = set(files_of(tmp_path))
    text = refusal(prepare_taskonomy, arguments(tmp_path), capsys)
    assert "unsafe member" in text and "allensville_normal.tar" in text
    made = set(files_of(tmp_path)) - everything - {"train_val_test_tiny.csv"}
    assert made and all(p.startswith("out/") and "allensville" not in p for p in made)


def test_bad_archives_and_split_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_download(tmp_path / "download", "tar")
    path = root / "corozal_rgb.tar"
    whole = path.read_bytes()
    for data in (b"<html>404</html>", whole[: len(whole) // 2]):
        path.write_bytes(data)
        assert "cannot be read as a tar archive" in refusal(
            prepare_taskonomy, arguments(tmp_path), capsys
        )
        assert not (tmp_path / "out/rgb/corozal").exists()
    name = f"{VIEWS[0]}_domain_rgb.png"
    write_tar(path, {f"a/{name}": b"1", f"b/{name}": b"2"})
    assert "is in it twice" in refusal(prepare_taskonomy, arguments(tmp_path), capsys)
    given = arguments(tmp_path)
    split = tmp_path / "train_val_test_tiny.csv"
    split.write_text("id,train,val,test\nallensville,1,1,0\n")
    assert "allensville is in two splits" in refusal(prepare_taskonomy, given, capsys)
    split.write_text("id,train,val,test\nnowhere,1,0,0\n")
    assert "0 of the 1 buildings" in refusal(prepare_taskonomy, given, capsys)
    split.write_text("scene,split\n")
    assert "columns id, train, val, test" in refusal(prepare_taskonomy, given, capsys)
    given[1] = str(tmp_path / "nothing")
    split = write_split(split)
    assert "is not a folder" in refusal(prepare_taskonomy, given, capsys)


def test_the_published_configuration_reads_it(tmp_path: Path) -> None:
    write_download(tmp_path / "download", "tar")
    assert prepare_taskonomy.main(arguments(tmp_path)) == 0
    config = "cfgs/finetune/taskonomy/rgb2edges-1k/ft_rgb2edges_multimae-b.yaml"
    cfg = parse_config(
        TaskonomyConfig,
        [
            "--config",
            config,
            "--data_path",
            str(tmp_path / "out"),
            "--input_size",
            "64",
            "--finetune",
            "",
        ],  # fmt: skip
    )
    dataset = TaskonomyFinetuning(cfg, WORLD).train_set()
    assert len(dataset) == 6
    read_all(dataset)
