"""Fast readers equal Pillow; --fast_decode is close to it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from multimae.images import readers
from multimae.images.fast_decode import LazyPhoto
from multimae.images.folders import MultiModalFolder
from multimae.images.pixels import ImageError
from multimae.images.readers import decode_fast, jpeg_size, read, read_fast
from multimae.specs.errors import UserError
from tests.support.image_folders import DEPTH, MODALITIES, RGB, SEMSEG, message_of, write_folder
from tools.bench_loader import Variant, interleave
from utils.data import batches
from utils.data.batches import BadSample, Sample, collate
from utils.data.dataset import MultiModalDataset, build_loader
from utils.data.samplers import GlobalBatchSampler, SampleKey
from utils.data.transforms import TrainTransform

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (37, 43, 3), np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """Something like a photograph: noise at several scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for side in (4, 16, 64):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), float) / 3
    return Image.fromarray(total.astype(np.uint8))


def encoded(array: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, kind, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif


def dated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0132] = "2026:01:01 00:00:00"
    return exif


# What it is, and whether Pillow is not needed.
FILES: dict[str, tuple[bytes, bool]] = {
    **{f"jpeg 4:{s}": (encoded(NOISE, "JPEG", subsampling=s), True) for s in (0, 1, 2)},
    "progressive": (encoded(NOISE, "JPEG", progressive=True), True),
    "restarts": (encoded(NOISE, "JPEG", restart_marker_blocks=2), True),
    "dated": (encoded(NOISE, "JPEG", exif=dated()), True),
    "turned": (encoded(NOISE, "JPEG", exif=turned()), False),
    "grey jpeg": (encoded(NOISE[..., 0], "JPEG"), False),
    "cmyk": (encoded(Image.fromarray(NOISE).convert("CMYK"), "JPEG"), False),
    "rgb jpeg": (encoded(NOISE, "JPEG", keep_rgb=True), False),
    "grey png": (encoded(NOISE[..., 0], "PNG"), True),
    "wide png": (encoded(RNG.integers(0, 65536, (30, 41), np.uint16), "PNG"), True),
    "two colours": (encoded(Image.fromarray(NOISE).convert("1"), "PNG"), False),
    "rgb png": (encoded(NOISE, "PNG"), False),
    "palette": (encoded(Image.fromarray(NOISE).convert("P"), "PNG"), False),
    "transparent": (encoded(NOISE[..., 0], "PNG", transparency=7), False),
    "turned png": (encoded(NOISE[..., 0], "PNG", exif=turned()), False),
    "webp": (encoded(NOISE, "WEBP", lossless=True), False),
}


@pytest.mark.parametrize("name", FILES)
def test_values_equal_pillow(name: str) -> None:
    data, fast = FILES[name]
    array = decode_fast(data)
    if fast:
        assert array is not None
    if array is not None:
        np.testing.assert_array_equal(array, np.asarray(Image.open(io.BytesIO(data))))
        assert name not in ("turned", "turned png", "transparent", "palette", "cmyk")
    for row in (RGB, DEPTH, SEMSEG):
        same_outcome(data, row)


def same_outcome(data: bytes, row: Any) -> None:
    """Pillow's pixels, or Pillow's error."""
    path = "folder/a.png"
    outcomes: list[Any] = []
    for function in (lambda *args: read(Path(path), *args), lambda *args: read_fast(path, *args)):
        try:
            outcomes.append(np.asarray(function(row, 1, data)))
        except ImageError as err:
            outcomes.append(str(err))
    if isinstance(outcomes[0], str):
        assert outcomes[0] == outcomes[1]
    else:
        np.testing.assert_array_equal(*outcomes)
        assert outcomes[0].dtype == outcomes[1].dtype


@pytest.mark.parametrize("name", ["jpeg 4:2", "progressive", "grey png", "wide png"])
def test_damaged_files_raise_pillows_error(name: str) -> None:
    data = FILES[name][0]
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.integers(2, len(data))] ^= int(rng.integers(1, 256))
        same_outcome(bytes(damaged), RGB if "png" not in name else DEPTH)
        same_outcome(data[: rng.integers(1, len(data))], RGB if "png" not in name else DEPTH)


def test_a_decoder_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[bytes], Any] = readers._decode_jpeg
    data = FILES["jpeg 4:2"][0]
    monkeypatch.setattr(readers, "_decode_jpeg", lambda data: real(data) ^ 1)
    readers._jpeg_matches_pillow.cache_clear()
    try:
        assert decode_fast(data) is None
        same_outcome(data, RGB)
    finally:
        readers._jpeg_matches_pillow.cache_clear()


def test_without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_has_simplejpeg", lambda: False)
    assert jpeg_size(FILES["jpeg 4:2"][0]) is None
    same_outcome(FILES["jpeg 4:2"][0], RGB)


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.9, 1.0)])
@pytest.mark.parametrize("size", [(256, 256), (480, 640), (30, 300), (300, 30)])
def test_boxes_equal_torchvision(scale: tuple[float, float], size: tuple[int, int]) -> None:
    ours = TrainTransform([RGB], 32, scale)
    theirs = v2.RandomResizedCrop(32, scale)
    for seed in range(40):
        torch.manual_seed(seed)
        view = ours.draw_view(size)
        torch.manual_seed(seed)
        box = theirs.get_params(torch.empty(0, *size), list(scale), [3 / 4, 4 / 3])
        assert tuple(view[1:5]) == tuple(map(int, box))
        assert view.flip is bool(torch.rand(()) < 0.5)


class TestFastDecode:
    """Photographs differ slightly, all other modalities not at all."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """12 samples; photographs of 480 x 640, of which views of 128 need not all pixels."""
        for i in range(12):
            key = f"{'kitchen' if i % 2 else 'bath'}/{i:03d}"
            for name, image in (
                ("rgb", smooth(480, 640, i)),
                ("depth", Image.fromarray(RNG.integers(0, 65536, (240, 320), np.uint16))),
                ("semseg", Image.fromarray(RNG.integers(0, 41, (480, 640), np.uint8))),
            ):
                path = tmp_path / name / f"{key}.{'jpg' if name == 'rgb' else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
        return tmp_path

    def datasets(self, root: Path, side: int, **options: Any) -> list[MultiModalDataset]:
        folder, transform = MultiModalFolder(root, MODALITIES), TrainTransform(MODALITIES, side)
        return [
            MultiModalDataset(folder, transform, fast_decode=fast, patch_size=16, **options)
            for fast in (False, True)
        ]

    @pytest.mark.parametrize("side", [64, 224])
    def test_differences(self, root: Path, side: int) -> None:
        exact, fast = self.datasets(root, side)
        for i in range(12):
            theirs, ours = exact[SampleKey(i, i)].images, fast[SampleKey(i, i)].images
            assert isinstance(fast._read(i)[0]["rgb"], LazyPhoto)
            difference = (ours["rgb"].int() - theirs["rgb"].int()).abs().float()
            assert difference.mean() <= 2 and ours["rgb"].shape == theirs["rgb"].shape
            assert torch.equal(ours["depth"], theirs["depth"])
            assert torch.equal(ours["semseg"], theirs["semseg"])

    def test_damage(self, root: Path) -> None:
        path = root / "rgb/bath/004.jpg"
        path.write_bytes(path.read_bytes()[:3000])
        _, fast = self.datasets(root, 64)
        with pytest.raises(UserError, match="bath/004"):
            fast[SampleKey(0, 2)]
        assert str(path) in fast.check(2).problems[0]
        _, fast = self.datasets(root, 64, skip_bad=True)
        bad = fast[SampleKey(0, 2)]
        assert isinstance(bad, BadSample) and str(path) in bad.problem

    def test_what_is_smaller_than_a_patch(self, root: Path) -> None:
        smooth(8, 12).save(root / "rgb/bath/004.jpg")
        _, fast = self.datasets(root, 64)
        assert "smaller" in message_of(fast.__getitem__, SampleKey(0, 2))


def test_batches_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [
        Sample({"a": torch.full((3, 4, 5), i, dtype=torch.uint8), "b": torch.ones(2) * i}, f"{i}")
        for i in range(4)
    ]
    samples[0].images["c"] = samples[0].images["b"] > 0
    for sample in samples[1:]:
        sample.images["c"] = torch.zeros(2, dtype=torch.bool)
    plain = collate(samples)
    monkeypatch.setattr(batches, "get_worker_info", lambda: object())
    shared = collate(samples)
    for name, value in plain.images.items():
        assert torch.equal(shared.images[name], value)
        assert shared.images[name].dtype == value.dtype
        assert shared.images[name].is_shared() and not value.is_shared()


def test_worker_memory_is_constant(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    data = MultiModalDataset(MultiModalFolder(root, MODALITIES), TrainTransform(MODALITIES, 224))
    sampler = GlobalBatchSampler(len(data), 6)
    loader = build_loader(data, sampler, num_workers=1, pin_memory=False)
    variant = Variant("x", data, loader, sampler)
    interleave([variant], 24)
    iterator: Any = loader._iterator
    iterator._shutdown_workers()
    assert len(variant.rates) == 24 and min(variant.rates) > 0
    # 24 epochs of 12 samples were 60 MiB: those of their batches.
    assert variant.memory[-1] - variant.memory[3] < 10
