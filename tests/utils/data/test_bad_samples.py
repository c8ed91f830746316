"""Bad files: an error that names the path, or a skipped sample, depending on the option."""

from __future__ import annotations

import builtins
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from multimae.images.folders import MultiModalFolder
from multimae.specs.modalities import make_table
from tests.support.image_folders import MODALITIES, make_dataset, message_of, save, write_folder
from tests.utils.tasks.test_finetuning_taskonomy import write_taskonomy
from utils.data.batches import BadSample, Batch, Sample, collate
from utils.data.dataset import MultiModalDataset, build_loader, check_samples
from utils.data.samplers import GlobalBatchSampler, SampleKey
from utils.data.sets.taskonomy_views import TaskonomyFolder
from utils.data.transforms import TrainTransform

KEY, INDEX = "bath/004", 2  # sorted: bath/000, bath/002, bath/004, ...
COUNT = 12
RGB, DEPTH, SEMSEG = f"rgb/{KEY}.jpg", f"depth/{KEY}.png", f"semseg/{KEY}.png"


def declared_png(width: int, height: int) -> bytes:
    """A small PNG whose header declares this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def garbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 16):
        data[i] ^= 0xFF
    path.write_bytes(bytes(data))


def odd_exif(path: Path) -> None:
    """EXIF with an orientation and an invalid text, which Pillow cannot write back."""
    tag = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0xC612, 99, 1, 6)
    body = b"II*\0" + struct.pack("<IH", 8, 40) + tag
    Image.new("RGB", (52, 40)).save(path, exif=b"Exif\0\0" + body, quality=90)
    cut(path, 0.9)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


GREY = Image.new("L", (52, 40))
DEFECTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "deleted": (RGB, Path.unlink),
    "dangling link": (DEPTH, dangling),
    "folder": (RGB, as_folder),
    "no permission": (RGB, lambda p: p.chmod(0)),
    "zero bytes": (SEMSEG, lambda p: write(p, b"")),
    "zeros": (RGB, lambda p: write(p, bytes(5000))),
    "text": (DEPTH, lambda p: write(p, b"<html>404 not found</html>")),
    "truncated JPEG": (RGB, lambda p: cut(p, 0.5)),
    "truncated PNG": (DEPTH, lambda p: cut(p, 0.5)),
    "header only": (RGB, lambda p: cut(p, 0.05)),
    "garbled PNG": (DEPTH, garbled),
    "odd EXIF": (RGB, odd_exif),
    "GIF": (SEMSEG, lambda p: write(p, encoded(GREY, "GIF"))),
    "bomb": (DEPTH, lambda p: write(p, declared_png(30000, 30000))),
    "larger bomb": (RGB, lambda p: write(p, declared_png(2**31 - 1, 2**31 - 1))),
    "oversized": (SEMSEG, lambda p: write(p, declared_png(10000, 10000))),
    "depth in 8-bit colours": (DEPTH, lambda p: save(p, np.zeros((40, 52, 3), np.uint8))),
    "floats": (DEPTH, lambda p: write(p, encoded(Image.new("F", (52, 40)), "TIFF"))),
    "16-bit photo": (RGB, lambda p: write(p, encoded(Image.new("I;16", (52, 40)), "PNG"))),
    "labels in colour": (SEMSEG, lambda p: save(p, np.zeros((40, 52, 3), np.uint8))),
    "unknown class": (SEMSEG, lambda p: save(p, np.full((40, 52), 41, np.uint8))),
    "smaller than a patch": (SEMSEG, lambda p: save(p, np.zeros((1, 1), np.uint8))),
    "other shape": (DEPTH, lambda p: save(p, np.zeros((52, 40), np.uint16))),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """All samples of the intact folder."""
    root = write_folder(tmp_path_factory.mktemp("clean"))
    data = make_dataset(root, patch_size=16)
    return collate([data[SampleKey(0, i)] for i in range(COUNT)])


@pytest.fixture
def damaged(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[MultiModalFolder, Path]:
    """Index of a folder in which one file was damaged afterwards."""
    name, damage = DEFECTS[request.param]
    folder = MultiModalFolder(write_folder(tmp_path), MODALITIES)
    path = tmp_path / name
    damage(path)
    if request.param == "no permission" and os.access(path, os.R_OK):  # root may read it anyway
        opened = builtins.open

        def refuse(file: Any, *args: Any, **kwargs: Any) -> Any:
            if str(file) == str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return opened(file, *args, **kwargs)

        monkeypatch.setattr(builtins, "open", refuse)
    return folder, path


def dataset(folder: MultiModalFolder, *, skip_bad: bool = False) -> MultiModalDataset:
    """Data set of an existing index."""
    return MultiModalDataset(
        folder, TrainTransform(MODALITIES, 32), patch_size=16, skip_bad=skip_bad
    )


def batches(folder: MultiModalFolder, workers: int, skip_bad: bool) -> list[Batch]:
    """Batches of four samples, in folder order."""
    data = dataset(folder, skip_bad=skip_bad)
    sampler = GlobalBatchSampler(len(data), 4, shuffle=False)
    loader = build_loader(data, sampler, num_workers=workers, pin_memory=False)
    iterator: Any = iter(loader)
    try:
        return list(iterator)
    finally:  # the traceback would keep the worker alive for five seconds
        if workers:
            iterator._shutdown_workers()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("damaged", "workers"),
    [*((name, 0) for name in DEFECTS), ("deleted", 1), ("truncated PNG", 1), ("bomb", 1)],
    indirect=["damaged"],
)
class TestEveryDefect:
    def test_error_names_the_file(
        self, damaged: tuple[MultiModalFolder, Path], workers: int
    ) -> None:
        folder, path = damaged
        assert str(path) in message_of(batches, folder, workers, skip_bad=False)

    def test_skip_drops_only_the_bad_sample(
        self, damaged: tuple[MultiModalFolder, Path], workers: int, clean: Batch
    ) -> None:
        folder, path = damaged
        first, *others = batches(folder, workers, skip_bad=True)
        ((name, problem),) = first.bad
        assert name == KEY and str(path) in problem
        assert first.sample_indices == (0, 1, 3) and first.full_size == 4
        assert all(not b.bad and b.sample_indices is None and len(b) == 4 for b in others)
        kept = [i for i in range(COUNT) if i != INDEX]
        assert [n for b in (first, *others) for n in b.names] == [clean.names[i] for i in kept]
        for kind, images in clean.images.items():
            seen = torch.cat([b.images[kind] for b in (first, *others)])
            assert torch.equal(seen, images[kept]), kind


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("damaged", DEFECTS, indirect=True)
def test_check_before_training_names_the_file(damaged: tuple[MultiModalFolder, Path]) -> None:
    folder, path = damaged
    assert str(path) in message_of(check_samples, dataset(folder), COUNT, 100)
    lenient = dataset(folder, skip_bad=True)
    ((name, problem),) = check_samples(lenient, COUNT, 1)
    assert name == KEY and str(path) in problem and lenient.known_bad == [(name, problem)]
    message = message_of(check_samples, lenient, COUNT, 0)
    assert str(path) in message and "1 bad samples" in message and "--max_bad_samples" in message


def test_pillow_warnings_as_errors_are_handled(tmp_path: Path) -> None:
    """`python -W error` turns Pillow's warning about large images into an exception."""
    import warnings

    data = make_dataset(write_folder(tmp_path), skip_bad=True)
    (tmp_path / RGB).write_bytes(declared_png(10000, 10000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bad = data[SampleKey(0, INDEX)]
    assert isinstance(bad, BadSample) and "more pixels" in bad.problem


def test_incomplete_samples_are_listed_or_skipped(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "depth/bath/000.png").unlink()
    (tmp_path / "rgb/kitchen/003.jpg").unlink()
    (tmp_path / "semseg/kitchen/003.png").unlink()
    message = message_of(MultiModalFolder, tmp_path, MODALITIES)
    assert "bath/000" in message and "kitchen/003" in message and "10 names are complete" in message
    folder = MultiModalFolder(tmp_path, MODALITIES, skip_incomplete=True)
    whole = [f"{'kitchen' if i % 2 else 'bath'}/{i:03d}" for i in range(COUNT) if i not in (0, 3)]
    assert [folder.name(i) for i in range(len(folder))] == sorted(whole)
    (first, lacks_one), (second, lacks_two) = folder.incomplete
    assert first == tmp_path / "rgb/bath/000.jpg" and str(tmp_path / "depth") in lacks_one
    assert second == tmp_path / "depth/kitchen/003.png" and "'rgb'" in lacks_two
    assert "'semseg'" in lacks_two and str(second) in lacks_two
    data = dataset(folder, skip_bad=True)
    assert [b.problem for b in check_samples(data, 3, 2)] == [lacks_one, lacks_two]
    assert "2 lack a file" in message_of(check_samples, data, 3, 1)


def test_no_complete_sample_is_an_error(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"rgb/{i}.png", np.zeros((8, 8, 3), np.uint8))
        save(tmp_path / f"depth/{i + 5}.png", np.zeros((8, 8), np.uint16))
    rows = [m for m in MODALITIES if m.name in ("rgb", "depth")]
    message = message_of(MultiModalFolder, tmp_path, rows, skip_incomplete=True)
    assert "0 names are complete" in message


def test_incomplete_views_do_not_change_the_subset(tmp_path: Path) -> None:
    root = write_taskonomy(tmp_path, buildings=2, views=6)
    rows = [make_table({})["rgb"], make_table({"normal": {}})["normal"]]
    buildings = frozenset({"building0", "building1"})

    def names(**options: Any) -> list[str]:
        folder = TaskonomyFolder(root, rows, buildings, 4, **options)
        return [folder.name(i) for i in range(len(folder))]

    chosen = names()
    assert len(chosen) == 4
    (root / f"normal/{chosen[1]}_domain_normal.png").unlink()
    assert names(skip_incomplete=True) == [chosen[0], *chosen[2:]]
    assert chosen[1] in message_of(names)


def test_batch_without_good_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [BadSample(f"a/{i}", f"/data/a/{i}.png: empty") for i in range(3)]
    batch = collate(bad)
    assert (batch.images, batch.names, batch.bad, batch.sample_indices) == ({}, [], bad, ())
    assert len(batch) == 0 and batch.full_size == 3
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    mixed = collate([Sample({"x": torch.ones(2)}, "a/9"), *bad])
    for each in (batch, mixed):
        assert each.to("cpu") == each and each.pin_memory() == each
    assert mixed.sample_indices == (0,) and mixed.names == ["a/9"]
    assert collate([Sample({"x": torch.ones(2)}, "a/9")]).sample_indices is None
