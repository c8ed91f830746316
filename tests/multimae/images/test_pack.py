"""Packed folders: identical samples, resuming after interruption, detection of damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from multimae.images.folders import MultiModalFolder, sub_folders
from multimae.images.pixels import ImageError
from tests.support.image_folders import (
    MODALITIES,
    RGB,
    message_of,
    save,
    write_folder,
    write_sample,
)
from tests.support.loading import batches
from tools import pack_dataset
from tools.pack import packing
from tools.pack.packing import PackOptions, write_packs
from tools.pack.sources import list_images
from utils.data.batches import BadSample
from utils.data.dataset import MultiModalDataset, check_samples
from utils.data.samplers import SampleKey
from utils.data.transforms import TrainTransform


def pack(root: Path, out: Path, **options: Any) -> Path:
    options = {"images_per_shard": 5, **options}
    write_packs(list_images(root), root, out, PackOptions(**options), workers=1)
    return out


def dataset(root: Path, **options: Any) -> MultiModalDataset:
    folder = MultiModalFolder(root, MODALITIES)
    return MultiModalDataset(folder, TrainTransform(MODALITIES, 32), patch_size=16, **options)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """12 samples, one of each kind that a pack stores differently."""
    root = write_folder(tmp_path / "plain")
    rng = np.random.default_rng(0)
    save(root / "rgb/bath/000.jpg", rng.integers(0, 256, (40, 52), np.uint8))  # grey
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(rng.integers(0, 256, (52, 40, 3), np.uint8))
    turned.save(root / "rgb/bath/002.jpg", exif=exif)
    (root / "rgb/bath/004.jpg").unlink()
    save(root / "rgb/bath/004.PNG", rng.integers(0, 256, (40, 52, 3), np.uint8))
    palette = Image.fromarray(rng.integers(0, 41, (40, 52), np.uint8))
    palette.putpalette([v for i in range(256) for v in (255 - i, 7, i)])
    palette.save(root / "semseg/kitchen/001.png")
    save(root / "depth/kitchen/003.png", rng.integers(0, 256, (40, 52), np.uint8))
    (root / "classes.json").write_text(json.dumps({"classes": ["void", "wall"]}))
    return root


@pytest.mark.parametrize("options", [{}, {"jpeg": "raw"}, {"codec": "zlib"}], ids=str)
def test_the_samples_are_identical(root: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    plain, packed = dataset(root), dataset(pack(root, tmp_path / "out", **options))
    assert len(plain) == len(packed) == 12
    for i in range(12):
        for epoch in range(3):
            ours, theirs = packed[SampleKey(epoch, i)], plain[SampleKey(epoch, i)]
            assert ours.name == theirs.name and ours.images.keys() == theirs.images.keys()
            for name, value in theirs.images.items():
                assert torch.equal(ours.images[name], value), (ours.name, name)
                assert ours.images[name].dtype == value.dtype
    names = [(plain.folder.path(i, m), packed.folder.path(i, m)) for i in range(12) for m in (RGB,)]
    for before, after in names:
        assert before.relative_to(root) == after.relative_to(tmp_path / "out")
    assert sub_folders(tmp_path / "out/rgb") == sub_folders(root / "rgb") == ["bath", "kitchen"]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_workers(root: Path, tmp_path: Path, workers: int) -> None:
    expected = batches(dataset(root), 0)
    found = batches(dataset(pack(root, tmp_path / "out")), workers)
    assert [names for names, _ in found] == [names for names, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_packed_and_plain_modalities_can_be_mixed(root: Path, tmp_path: Path) -> None:
    out = pack(root, tmp_path / "out")
    shutil.rmtree(out / "rgb")
    shutil.copytree(root / "rgb", out / "rgb")
    for i in range(12):
        ours, theirs = dataset(out)[SampleKey(0, i)], dataset(root)[SampleKey(0, i)]
        assert all(torch.equal(ours.images[k], v) for k, v in theirs.images.items())


@pytest.mark.parametrize("options", [{}, {"jpeg": "raw", "codec": "zlib"}], ids=str)
def test_unpacking_restores_every_file(
    root: Path, tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for key, value in options.items() for word in (f"--{key}", value)]
    out, again = tmp_path / "out", tmp_path / "again"
    command = ["--data_path", str(root), "--out", str(out), "--images_per_shard", "5", *flags]
    assert pack_dataset.main(command) == 0
    assert pack_dataset.main(["--data_path", str(out), "--verify"]) == 0
    assert pack_dataset.main(["--data_path", str(out), "--out", str(again), "--unpack"]) == 0
    assert files(again) == files(root)
    assert "12 depth" in capsys.readouterr().out


def test_training_does_not_need_the_files(root: Path, tmp_path: Path) -> None:
    whole, bare = pack(root, tmp_path / "a"), pack(root, tmp_path / "b", keep_files=False)
    for path in whole.rglob("*.files"):
        path.unlink()
    for i in range(12):
        ours, theirs = dataset(bare)[SampleKey(0, i)], dataset(whole)[SampleKey(0, i)]
        assert all(torch.equal(ours.images[k], v) for k, v in theirs.images.items())
    flags = ["--out", str(tmp_path / "c"), "--unpack"]
    assert pack_dataset.main(["--data_path", str(bare), *flags]) == 2
    assert pack_dataset.main(["--data_path", str(whole), *flags]) == 2


def test_max_size_downscales_larger_images(tmp_path: Path) -> None:
    root = tmp_path / "plain"
    write_sample(root, "a/0", size=(96, 128))
    write_sample(root, "a/1", size=(40, 52))
    out = pack(root, tmp_path / "out", max_size=64)
    folder = MultiModalFolder(out, MODALITIES)
    shapes = [np.asarray(folder.read(0, m)).shape[:2] for m in folder.modalities]
    assert shapes == [(48, 64)] * 3
    assert np.asarray(folder.read(1, RGB)).shape == (40, 52, 3)
    depth = np.asarray(Image.open(root / "depth/a/0.png"))
    assert set(np.unique(folder.read(0, folder.modalities[1]))) <= set(np.unique(depth))


class TestInterruption:
    """Interrupted packing reports it, resumes, and gives the same pack."""

    def test_goes_on(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = files(pack(root, tmp_path / "whole"))
        done, real = [], packing._write_files

        def dies(job: Any, records: Any) -> Any:
            if len(done) == 4:
                raise KeyboardInterrupt
            done.append((job.target.name, job.shard))
            return real(job, records)

        monkeypatch.setattr(packing, "_write_files", dies)
        with pytest.raises(KeyboardInterrupt):
            pack(root, tmp_path / "out")
        monkeypatch.setattr(packing, "_write_files", real)
        assert "again" in message_of(MultiModalFolder, tmp_path / "out", MODALITIES)
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.shard")}
        (tmp_path / "out/rgb/.00009.shard.1.tmp").write_bytes(b"left by a kill")
        assert files(pack(root, tmp_path / "out")) == expected
        assert len(before) == 4 and all(p.stat().st_mtime_ns == t for p, t in before.items())

    def test_finished_pack_is_not_rewritten(self, root: Path, tmp_path: Path) -> None:
        out = pack(root, tmp_path / "out")
        times = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
        pack(root, out)
        assert times == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
        pack(root, out, jpeg="raw")
        assert times != {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}

    def test_changed_file_is_repacked(self, root: Path, tmp_path: Path) -> None:
        out = pack(root, tmp_path / "out")
        write_sample(root, "kitchen/011", seed=99)
        write_sample(root, "kitchen/012", seed=98)
        pack(root, out)
        assert len(dataset(out)) == 13
        assert all(
            torch.equal(value, dataset(out)[SampleKey(0, i)].images[name])
            for i in (11, 12)
            for name, value in dataset(root)[SampleKey(0, i)].images.items()
        )


class TestDamage:
    """What is wrong with a pack is said with the path."""

    def test_a_truncated_shard(self, root: Path, tmp_path: Path) -> None:
        out = pack(root, tmp_path / "out")
        data = dataset(out)
        path = out / "depth/00001.shard"
        path.write_bytes(path.read_bytes()[:-100])
        message = message_of(MultiModalFolder, out, MODALITIES)
        assert str(path) in message and "instead of" in message
        assert any(str(path) in p for i in range(12) for p in data.check(i).problems)
        assert pack_dataset.main(["--data_path", str(out), "--verify"]) == 2

    def test_a_missing_shard(self, root: Path, tmp_path: Path) -> None:
        out = pack(root, tmp_path / "out")
        (out / "rgb/00002.shard").unlink()
        assert str(out / "rgb/00002.shard") in message_of(MultiModalFolder, out, MODALITIES)

    @pytest.mark.parametrize("modality", ["rgb", "depth"])
    def test_a_wrong_checksum(
        self, root: Path, tmp_path: Path, modality: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = pack(root, tmp_path / "out")
        path = out / modality / "00000.shard"
        spoiled = bytearray(path.read_bytes())
        spoiled[len(spoiled) // 2] ^= 1
        path.write_bytes(spoiled)
        message = message_of(check_samples, dataset(out), 12)
        assert str(path) in message and "wrong checksum" in message
        assert pack_dataset.main(["--data_path", str(out), "--verify"]) == 2
        assert f"{path}: wrong checksum" in capsys.readouterr().err
        skipping = dataset(out, skip_bad=True)
        assert len(check_samples(skipping, 12, max_bad=1)) == 1

    def test_invalid_index_is_an_error(self, root: Path, tmp_path: Path) -> None:
        out = pack(root, tmp_path / "out")
        path = out / "semseg/index.npy"
        path.write_bytes(bytes(path.stat().st_size))
        assert str(path) in message_of(MultiModalFolder, out, MODALITIES)
        (out / "semseg/pack.json").write_text("{}")
        assert "pack.json" in message_of(MultiModalFolder, out, MODALITIES)

    def test_names_outside_the_folder_are_rejected(self, root: Path, tmp_path: Path) -> None:
        out = pack(root, tmp_path / "out")
        names = np.load(out / "rgb/names.npy")
        names[0] = b"../evil.jpg"
        np.save(out / "rgb/names.npy", names)
        assert pack_dataset.main(
            ["--data_path", str(out), "--out", str(tmp_path / "a"), "--unpack"]
        ) == 2  # fmt: skip
        assert not (tmp_path / "a/evil.jpg").exists()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("rgb/bath/006.jpg", lambda data: data[: len(data) // 2]),
        ("depth/bath/006.png", lambda data: data[: len(data) // 2]),
        ("semseg/bath/006.png", lambda data: b""),
        ("depth/bath/006.png", lambda data: b"no image"),
    ],
)
def test_bad_files_are_the_same_bad_samples(
    root: Path, tmp_path: Path, name: str, spoil: Any
) -> None:
    (root / name).write_bytes(spoil((root / name).read_bytes()))
    out = pack(root, tmp_path / "out")
    plain, packed = dataset(root, skip_bad=True), dataset(out, skip_bad=True)
    found = [(plain[SampleKey(0, i)], packed[SampleKey(0, i)]) for i in range(12)]
    bad = [pair for pair in found if isinstance(pair[0], BadSample)]
    assert len(bad) == 1 and isinstance(bad[0][1], BadSample)
    assert bad[0][0].problem.replace(str(root), str(out)) == bad[0][1].problem
    assert bad[0][0].name == bad[0][1].name == "bath/006"
    with pytest.raises(ImageError, match="bath/006"):
        folder = packed.folder
        [folder.read(3, m) for m in folder.modalities]


def test_a_folder_without_images(tmp_path: Path) -> None:
    assert pack_dataset.main(["--data_path", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert pack_dataset.main(["--data_path", str(tmp_path), "--verify"]) == 2
