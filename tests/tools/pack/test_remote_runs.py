"""Runs that read packs over the network, are killed, and end as an undisturbed local run does."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from multimae.images.pack import to_path
from tests.support.scenes import write_scenes
from tests.support.servers import http_server, s3_server
from tools.pack.packing import PackOptions, copy_loose_files, write_packs
from tools.pack.sources import list_images
from tools.torture.fingerprint import fingerprint
from tools.torture.kills import chains_of, torture
from tools.torture.small_runs import REPO, Layout, RunFactory, finish

RESUME = [str(REPO / "tools/torture_resume.py"), "child"]
STEPS = 24


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenes = write_scenes(tmp_path_factory.mktemp("plain"), 8)
    out = tmp_path_factory.mktemp("packed")
    write_packs(list_images(scenes), scenes, out, PackOptions(images_per_shard=3), workers=1)
    copy_loose_files(scenes, out)
    return out


def local_run(packed: Path, folder: Path, layout: Layout) -> dict[str, str]:
    finish(RunFactory(RESUME, packed, STEPS).start(layout, folder), folder)
    return fingerprint(folder)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["1x0", "1x2", "2x1"])
def test_a_killed_run_over_http_that_drops_every_tenth_request(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setenv("MULTIMAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MULTIMAE_CACHE_GB", "0")
    chosen = Layout.parse(layout)
    expected = local_run(packed, tmp_path / "local", chosen)
    with http_server(packed, drop_every=10) as server:
        chains = chains_of([chosen], kills=2, in_save=1, per_chain=2, seed=1)
        runs = RunFactory(RESUME, to_path(server.url), STEPS)
        report = torture(chains, runs, tmp_path)
        assert len(server.requests) > 3 * STEPS
    assert (report["differ"], report["kills"], report["equal"]) == ({}, 2, 1)
    assert fingerprint(tmp_path / "chain-0") == expected


@pytest.mark.long
def test_a_killed_run_over_s3(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIMAE_CACHE", str(tmp_path / "cache"))
    layout = Layout(2, 1)
    with s3_server() as address:
        for name, value in {"KEY": "test", "SECRET": "test", "ENDPOINT_URL": address}.items():
            monkeypatch.setenv(f"FSSPEC_S3_{name}", value)
        s3 = fsspec.filesystem("s3", key="test", secret="test", endpoint_url=address)
        s3.mkdir("bucket")
        s3.put(str(packed), "bucket/rooms", recursive=True)
        chains = chains_of([layout], kills=2, in_save=0, per_chain=2, seed=2)
        runs = RunFactory(RESUME, to_path("s3://bucket/rooms"), STEPS)
        report = torture(chains, runs, tmp_path)
    assert (report["differ"], report["equal"]) == ({}, 1)
    assert fingerprint(tmp_path / "chain-0") == local_run(packed, tmp_path / "local", layout)
