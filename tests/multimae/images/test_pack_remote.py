"""Packs behind URLs: the same batches as from a local folder, whatever the server does."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from multimae.images.folders import MultiModalFolder, read_class_names, sub_folders
from multimae.images.pack import remote, to_path
from multimae.images.pack.reading import PackedFolder
from multimae.images.pack.record_cache import RecordCache, cache_limit
from multimae.specs.errors import UserError
from tests.support.image_folders import DEPTH, MODALITIES, RGB, message_of, write_folder
from tests.support.loading import Batches, batches
from tests.support.servers import FileServer, http_server, s3_server
from tools.pack.packing import PackOptions, copy_loose_files, write_packs
from tools.pack.sources import list_images
from utils.config.options import RuntimeOptions
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.data.dataset import MultiModalDataset, check_samples
from utils.data.sets.class_folders import data_root
from utils.data.transforms import TrainTransform
from utils.distributed.world import ALONE, init_world
from utils.tasks import loaders


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_folder(tmp_path_factory.mktemp("plain"))
    (root / "classes.json").write_text(json.dumps({"classes": ["void", "wall"]}))
    out = tmp_path_factory.mktemp("packed")
    options = PackOptions(images_per_shard=5)
    write_packs(list_images(root), root, out, options, workers=1)
    copy_loose_files(root, out)
    return out


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULTIMAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_DELAY_S", 0.001)
    return tmp_path / "cache"


@pytest.fixture
def server(packed: Path, cache: Path) -> Iterator[FileServer]:
    with http_server(packed) as state:
        yield state


def dataset(root: str | Path) -> MultiModalDataset:
    folder = MultiModalFolder(root, MODALITIES)
    return MultiModalDataset(folder, TrainTransform(MODALITIES, 32), patch_size=16)


def assert_equal(ours: Batches, theirs: Batches) -> None:
    assert [names for names, _ in ours] == [names for names, _ in theirs]
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in b)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_over_http_are_those_of_the_folder(
    packed: Path, server: FileServer, workers: int
) -> None:
    data = dataset(server.url)
    assert_equal(batches(data, workers), batches(dataset(packed)))
    shards = [r for r in server.requests if r[0].endswith(".shard")]
    assert shards and all(asked for _, asked in shards)
    before = len(server.requests)
    assert_equal(batches(data, workers), batches(dataset(packed)))
    assert len(server.requests) == before, "records come from the cache"


def test_dropped_connections_are_repeated(packed: Path, server: FileServer) -> None:
    server.drop_every = 10
    data = dataset(server.url)
    assert_equal(batches(data), batches(dataset(packed)))
    assert len(server.requests) > 40
    assert read_class_names(server.url) == ("void", "wall")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_over_s3_are_those_of_the_folder(
    packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    with s3_server() as address:
        keys = {"key": "test", "secret": "test"}
        client = {"endpoint_url": address, "region_name": "eu-west-1"}
        options = {**keys, "client_kwargs": client}
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        monkeypatch.setattr(remote, "_clients", {})
        s3 = fsspec.filesystem("s3")
        s3.mkdir("bucket")
        s3.put(str(packed), "bucket/rooms", recursive=True)
        data = dataset("s3://bucket/rooms")
        assert_equal(batches(data, workers), batches(dataset(packed)))
        assert read_class_names("s3://bucket/rooms") == ("void", "wall")
        s3.rm("bucket/rooms/classes.json")
        assert read_class_names("s3://bucket/rooms") is None
        message = message_of(MultiModalFolder, "s3://bucket/nothing", MODALITIES)
        assert all(f"s3://bucket/nothing/{n}/pack.json" in message for n in ("rgb", "depth"))


def test_memory_and_file_urls(packed: Path, cache: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(packed), "/rooms", recursive=True)
    expected = batches(dataset(packed))
    assert_equal(batches(dataset("memory://rooms")), expected)
    assert_equal(batches(dataset(f"file://{packed}")), expected)
    assert sub_folders(to_path("memory://rooms/rgb")) == ["bath", "kitchen"]
    assert str(data_root("memory://rooms/rgb", [RGB])) == "memory://rooms"
    assert str(data_root("memory://rooms", [RGB])) == "memory://rooms"


def test_every_rank_reads_its_part(packed: Path, server: FileServer) -> None:
    for rank in range(2):
        shard = {"rank": rank, "world_size": 2}
        assert_equal(batches(dataset(server.url), **shard), batches(dataset(packed), **shard))


def test_a_server_without_ranges_is_refused(server: FileServer) -> None:
    server.ranges = False
    message = message_of(MultiModalFolder, server.url, MODALITIES)
    assert "range" in message and server.url in message
    assert not any(path.endswith(".shard") for path, _ in server.requests)


@pytest.mark.parametrize(("status", "requests"), [(503, remote.ATTEMPTS), (403, 1), (404, 1)])
def test_a_read_that_never_succeeds_ends_with_url_and_reason(
    server: FileServer, status: int, requests: int
) -> None:
    pack = MultiModalFolder(server.url, [RGB])
    server.requests.clear()
    server.status = status
    message = message_of(pack.read, 0, RGB)
    assert f"{server.url}/rgb/00000.shard" in message
    assert str(status) in message or status == 404 and "missing" in message
    assert len(server.requests) == requests
    if status != 503:
        assert read_class_names(server.url) is None
        assert f"{server.url}/rgb/pack.json" in message_of(MultiModalFolder, server.url, [RGB])


def test_a_batch_is_fetched_before_it_is_read(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIMAE_CACHE_GB", "0")
    folder = MultiModalFolder(server.url, MODALITIES)
    folder.prefetch([3, 8])
    before = len(server.requests)
    for m in (RGB, DEPTH):
        folder.read(8, m)
        folder.read(3, m)
    assert len(server.requests) == before
    folder.read(3, RGB)
    assert len(server.requests) == before + 1


def test_the_index_is_fetched_once(server: FileServer) -> None:
    MultiModalFolder(server.url, MODALITIES)
    fetched = [path for path, _ in server.requests if path.endswith(".npy")]
    assert len(fetched) == 5, "depth and semseg have the same names"
    MultiModalFolder(server.url, MODALITIES)
    assert sum(path.endswith(".npy") for path, _ in server.requests) == 5


def test_the_option_limits_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIMAE_CACHE_GB", "10")
    init_world(RuntimeOptions(device="cpu", data_cache_gb=0.5))
    assert cache_limit() == 500_000_000


def test_a_wrong_checksum_is_named(packed: Path, tmp_path: Path, cache: Path) -> None:
    root = shutil.copytree(packed, tmp_path / "damaged")
    shard = root / "rgb/00000.shard"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with http_server(root) as server:
        data_set = dataset(server.url)
        name = data_set.folder.name(0)
        message = message_of(check_samples, data_set, 12)
        assert f"{server.url}/rgb/00000.shard" in message and name in message
        (root / "rgb/names.npy").write_bytes(b"x" * (root / "rgb/names.npy").stat().st_size)
        shutil.rmtree(cache / "indices")
        message = message_of(MultiModalFolder, server.url, MODALITIES)
        assert f"{server.url}/rgb/names.npy" in message and "checksum" in message


def test_a_changed_pack_is_not_read_with_old_index_or_records(
    packed: Path, tmp_path: Path, cache: Path
) -> None:
    root = shutil.copytree(packed, tmp_path / "served")
    with http_server(root) as server:
        batches(dataset(server.url))
        again = write_folder(tmp_path / "again")
        for path in sorted((again / "rgb").rglob("*.jpg"))[:3]:
            shutil.copy(sorted((again / "rgb").rglob("*.jpg"))[-1], path)
        options = PackOptions(images_per_shard=5)
        shutil.rmtree(root)
        write_packs(list_images(again), again, root, options, workers=1)
        assert_equal(batches(dataset(server.url)), batches(dataset(root)))


def test_the_list_of_a_remote_pack_is_kept(
    packed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "MIN_CACHED_FILES", 0)
    listed = []
    original = MultiModalFolder._list
    monkeypatch.setattr(
        MultiModalFolder, "_list", lambda self, *a: listed.append(self) or original(self, *a)
    )
    root = shutil.copytree(packed, tmp_path / "served")

    def names(server: FileServer) -> list[str]:
        arguments = ["--data_path", server.url, "--index_cache", str(tmp_path / "cache")]
        find = loaders.index_finder(parse_config(PretrainConfig, arguments), ALONE)
        folder = MultiModalFolder(server.url, MODALITIES, find=find)
        for path in (cache / "indices").iterdir():
            if path.stat().st_mtime > 1e9:
                os.utime(path, (1e9, 1e9))  # as if it had been there for long
        assert folder.read(len(folder) - 1, RGB) is not None
        return [folder.name(i) for i in range(len(folder))]

    with http_server(root) as server:
        names(server)
        first, again = names(server), names(server)
        assert len(first) == 12 and first == again and len(listed) == 2
        plain = write_folder(tmp_path / "again")
        for modality in ("rgb", "depth", "semseg"):
            next((plain / modality).glob("*/003.*")).unlink()
        shutil.rmtree(root)
        write_packs(list_images(plain), plain, root, PackOptions(), workers=1)
        assert len(names(server)) == 11 and len(listed) == 3


def test_damage_in_the_cache_is_read_again(packed: Path, server: FileServer, cache: Path) -> None:
    batches(dataset(server.url))
    for path in (cache / "records").iterdir():
        if path.name[0] != ".":
            path.write_bytes(b"\1" * path.stat().st_size)
    assert_equal(batches(dataset(server.url)), batches(dataset(packed)))


def test_the_cache_stays_within_its_limit(
    packed: Path, server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIMAE_CACHE_GB", "0.0001")
    data = dataset(server.url)
    for _ in range(2):
        assert_equal(batches(data), batches(dataset(packed)))
    used = sum(p.stat().st_blocks * 512 for p in (cache / "records").iterdir() if p.suffix)
    assert used <= 100_000
    monkeypatch.setenv("MULTIMAE_CACHE_GB", "0")
    monkeypatch.setenv("MULTIMAE_CACHE", str(cache / "other"))
    assert_equal(batches(dataset(server.url)), batches(dataset(packed)))
    assert not (cache / "other/records").exists()
    monkeypatch.setenv("MULTIMAE_CACHE_GB", "much")
    assert "MULTIMAE_CACHE_GB" in message_of(dataset, server.url)


def test_records_of_earlier_runs_give_way(tmp_path: Path) -> None:
    ones = np.ones(20_000, np.uint8)
    old = RecordCache(tmp_path, 60_000)
    old.write("a" * 32, 0, ones)
    old.write("b" * 32, 50_000, ones)
    for name, age in (("a", 2000), ("b", 1000)):
        time = os.stat(tmp_path / (name * 32)).st_mtime - age
        os.utime(tmp_path / (name * 32), (time, time))
    new = RecordCache(tmp_path, 60_000)
    new.mark_used(["a" * 32])
    new.write("c" * 32, 0, ones)
    assert {p.name[0] for p in tmp_path.iterdir()} == {"a", "c", "."}
    new.write("d" * 32, 0, ones)
    assert {p.name[0] for p in tmp_path.iterdir()} == {"a", "c", "."}


@pytest.mark.parametrize("digest", ["../../../outside", "a" * 31, "A" * 32])
def test_a_digest_cannot_name_another_file(
    packed: Path, tmp_path: Path, cache: Path, digest: str
) -> None:
    root = shutil.copytree(packed, tmp_path / "served")
    contents = json.loads((root / "rgb/pack.json").read_text())
    contents["files"][0]["digest"] = digest
    (root / "rgb/pack.json").write_text(json.dumps(contents))
    with http_server(root) as server:
        assert "rgb/pack.json" in message_of(MultiModalFolder, server.url, MODALITIES)


def test_a_package_or_protocol_that_is_missing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "multimae[remote]" in message_of(MultiModalFolder, "ftpx://host/rooms", MODALITIES)
    remote._clients.clear()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    message = message_of(MultiModalFolder, "gs://bucket/rooms", MODALITIES)
    assert "gs://bucket/rooms" in message and "\n" not in message
    assert message.endswith("pip install 'multimae[remote]' gcsfs")

    def missing(protocol: str, **_: object) -> None:
        raise ImportError(f"no module for {protocol}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    for url, package in (("s3://bucket/rooms", "s3fs"), ("https://host/rooms", "aiohttp")):
        message = message_of(MultiModalFolder, url, MODALITIES)
        assert package in message and message.endswith("pip install 'multimae[remote]'")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert "package s3fs" in message_of(MultiModalFolder, "s3://bucket/rooms", MODALITIES)


def test_local_paths_do_not_load_fsspec(packed: Path) -> None:
    assert isinstance(MultiModalFolder(packed, MODALITIES)._packs["rgb"], PackedFolder)
    assert to_path(str(packed)) == packed and to_path("C:/x") == Path("C:/x")
    with pytest.raises(UserError):
        MultiModalFolder(str(packed / "nothing"), MODALITIES)
