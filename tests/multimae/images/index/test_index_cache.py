"""Indices on disk: what is kept, when it is used, and when folders are listed again."""

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from multimae.images.folders import MultiModalFolder
from multimae.images.index import index_cache
from multimae.specs.modalities import default_table
from tests.support.image_folders import RGB, SEMSEG, save
from tools.pack.packing import PackOptions, write_packs
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.distributed.world import ALONE
from utils.tasks import loaders

DEPTH = default_table()["depth"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for key in ("a/1", "a/2", "b-c/3", "b/4", "caf\u00e9"):
        for folder in ("rgb", "depth"):
            save(root / f"{folder}/{key}.png", np.zeros((8, 8), np.uint8))
    (root / "rgb/a/2.png").rename(root / "rgb/a/2.JPG")
    (root / "rgb/b/x.txt").write_text("x")
    os.close(os.open(os.fsencode(root) + b"/depth/a/\xe9.png", os.O_CREAT))
    long_ago(root)
    return root


def long_ago(root: Path) -> None:
    """Let all folders look as if they had been changed an hour ago."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (time.time() - 3600,) * 2)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that were listed; also, sets of any size are cached."""
    keys = []
    monkeypatch.setattr(loaders, "MIN_CACHED_FILES", 0)
    original = MultiModalFolder._list

    def count(self: MultiModalFolder, *args: bool) -> object:
        keys.append(str(self.root))
        return original(self, *args)

    monkeypatch.setattr(MultiModalFolder, "_list", count)
    return keys


def opened(root: Path, cache: Path, *modalities: object, **options: bool) -> MultiModalFolder:
    cfg = parse_config(PretrainConfig, ["--data_path", str(root), "--index_cache", str(cache)])
    find = loaders.index_finder(cfg, ALONE)
    return MultiModalFolder(root, modalities or (RGB, DEPTH), find=find, **options)


def described(folder: MultiModalFolder) -> list[object]:
    rows = [
        (folder.name(i), [folder.has(i, m) and folder.path(i, m) for m in folder.modalities])
        for i in range(len(folder))
    ]
    about = (folder.digest, folder.patterns(), folder.ignored_lines(), folder.incomplete)
    return [*rows, *about]


@pytest.mark.parametrize("options", [{"skip_incomplete": True}, {"allow_missing": True}])
def test_an_index_is_kept_and_mapped(
    root: Path, tmp_path: Path, listed: list[str], options: dict[str, bool]
) -> None:
    plain = MultiModalFolder(root, [RGB, DEPTH], **options)
    first, second = (opened(root, tmp_path / "cache", **options) for _ in range(2))
    assert len(listed) == 2  # without and with a cache
    assert described(plain) == described(first) == described(second)
    assert described(pickle.loads(pickle.dumps(second))) == described(plain)
    assert not second._index.names.text.flags.owndata


def add_file(root: Path) -> None:
    for folder in ("rgb", "depth"):
        save(root / folder / "b/5.png", np.zeros((8, 8), np.uint8))


def add_folder(root: Path) -> None:
    for folder in ("rgb", "depth"):
        save(root / folder / "new/5.png", np.zeros((8, 8), np.uint8))


def replace_folder(root: Path) -> None:
    for folder in ("rgb", "depth"):
        (root / folder / "a").rename(root / folder / "z")


@pytest.mark.parametrize("change", [add_file, add_folder, replace_folder])
def test_a_changed_folder_is_listed_again(
    root: Path, tmp_path: Path, listed: list[str], change: object
) -> None:
    opened(root, tmp_path / "cache", skip_incomplete=True)
    change(root)
    long_ago(root)  # ctime changes though mtime may not
    found = opened(root, tmp_path / "cache", skip_incomplete=True)
    assert len(listed) == 2
    assert described(found) == described(MultiModalFolder(root, [RGB, DEPTH], skip_incomplete=True))
    assert len(list((tmp_path / "cache").rglob(index_cache.INDEX_FILE))) == 1  # replaced


def test_what_changed_just_before_is_not_trusted(
    root: Path, tmp_path: Path, listed: list[str]
) -> None:
    os.utime(root / "rgb/a")
    for _ in range(2):
        opened(root, tmp_path / "cache", skip_incomplete=True)
    assert len(listed) == 2


def test_other_options_have_other_indices(root: Path, tmp_path: Path, listed: list[str]) -> None:
    save(root / "semseg/a/1.png", np.zeros((8, 8), np.uint8))
    cache = tmp_path / "cache"
    counts = [
        len(opened(root, cache, RGB)),
        len(opened(root, cache, RGB, DEPTH, skip_incomplete=True)),
        len(opened(root, cache, RGB, DEPTH, allow_missing=True)),
        len(opened(root, cache, RGB, SEMSEG, skip_incomplete=True)),
    ]
    assert counts == [5, 5, 6, 1] and len(listed) == 4


def test_a_damaged_entry_is_listed_again(root: Path, tmp_path: Path, listed: list[str]) -> None:
    opened(root, tmp_path / "cache", skip_incomplete=True)
    for path in (tmp_path / "cache").rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1])
    assert len(opened(root, tmp_path / "cache", skip_incomplete=True)) == 5
    assert len(listed) == 2


def test_a_cache_that_cannot_be_written(
    root: Path, tmp_path: Path, listed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert len(opened(root, tmp_path / "file" / "cache", skip_incomplete=True)) == 5
    assert str(tmp_path / "file" / "cache") in capsys.readouterr().out


def test_packs(root: Path, tmp_path: Path, listed: list[str]) -> None:
    files = [p for p in root.glob("rgb/**/*") if p.suffix.lower() in (".png", ".jpg")]
    names = {"rgb": sorted(os.fsencode(p.relative_to(root / "rgb")) for p in files)}
    write_packs(names, root, tmp_path / "out", PackOptions(), workers=1)
    plain = MultiModalFolder(tmp_path / "out", [RGB])
    os.utime(tmp_path / "out/rgb/pack.json", (time.time() - 3600,) * 2)
    for name in ("names.npy", "index.npy"):
        os.utime(tmp_path / "out/rgb" / name, (time.time() - 3600,) * 2)
    for _ in range(2):
        folder = opened(tmp_path / "out", tmp_path / "cache", RGB)
        assert described(folder) == described(plain)
        for i in range(len(plain)):
            assert folder.packed_original(i, RGB) == plain.packed_original(i, RGB)
    assert len(listed) == 2
