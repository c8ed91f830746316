"""Tiles: places, weights, windows of files, and predictions without seams."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from multimae import ModelSpec, MultiViT
from multimae.images.pixels import ImageError
from multimae.images.views import View, cut
from multimae.inference.predict import LabelPrediction, ValuePrediction
from multimae.inference.tiling.grid import Axis, TileGrid, blend
from multimae.inference.tiling.tta import Augmentation
from multimae.inference.tiling.windows import Scene
from multimae.specs.heads import HeadOptions, HeadSpec, LinearOptions
from multimae.specs.modalities import Modality, default_table

RGB = default_table()["rgb"]
DEPTH = replace(default_table()["depth"], normalization="robust")
DENSE = HeadOptions("convnext", ("rgb",), dim=64, depth=1, preds_per_patch=4)
LABELS = Modality(
    "labels", "labels", num_classes=5, loss="cross_entropy", interpolation="nearest", plot="labels"
)
HEIGHT = Modality("height", num_channels=1, max_value=65535.0, mean=(0.1,), std=(0.2,))
BANDS = Modality("bands", num_channels=4, storage="float", max_value=1.0, mean=(0.4,), std=(0.3,))


def model(*heads: HeadSpec, **fields: Any) -> MultiViT:
    heads = heads or (HeadSpec("semseg", LABELS, 5, DENSE),)
    spec = ModelSpec(
        **{
            "name": "multivit_nano", "inputs": (RGB,), "patch_size": 8, "image_size": 32,
            "heads": heads, "resize_mode": "pad", "padding_class": True, **fields,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    built = MultiViT.from_spec(spec).eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():  # predictions that differ
            if name.startswith("output_adapters") and parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return built


def random(*shape: int, seed: int = 0, top: int = 256) -> Any:
    dtype = np.uint8 if top == 256 else np.uint16
    return np.random.default_rng(seed).integers(0, top, shape, dtype=dtype)


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_tiles_cover_an_axis_and_their_weights_sum_to_one(overlap: float, unit: int) -> None:
    for size in (5, 32, 33, 40, 57, 100, 127, 1000):  # 127: a gap if starts are rounded down
        axis = Axis.along(size, 32, overlap, unit)
        total = np.zeros(axis.size)
        for start, weights in zip(axis.starts, axis.weights.double().numpy(), strict=True):
            total[start : start + 32] += weights
        assert axis.starts[0] == 0 and axis.size == max(size, 32)
        assert np.abs(total - 1).max() < 1e-6 and (axis.weights > 0).all()
        gaps = np.diff(axis.starts)
        assert (gaps <= max(unit, math.floor(32 * (1 - overlap)))).all() and (gaps > 0).all()
        assert all(start % unit == 0 for start in axis.starts[:-1])


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("size", [(16, 24), (17, 70), (100, 41), (61, 95)])
def test_tiles_that_agree_are_blended_into_what_they_show(
    size: tuple[int, int], overlap: float
) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    grid = TileGrid.over(size, (16, 24), overlap)
    seen = torch.full_like(image, torch.nan)
    for block in blend(grid, ({"a": image[:, y : y + 16, x : x + 24]} for y, x in grid)):
        value = block.values["a"]
        box = seen[:, block.top :, block.left :][:, : value.shape[1], : value.shape[2]]
        assert box.isnan().all()
        box.copy_(value)
    assert torch.allclose(seen, image, atol=1e-6)


def test_blending_keeps_only_the_overlap_of_rows() -> None:
    """Memory does not depend on the height: a generator of tiles, none of them kept."""
    tile, alive = (16, 16), [0]

    def tiles(grid: TileGrid) -> Iterator[dict[str, torch.Tensor]]:
        for y, _ in grid:
            yield {"a": torch.full((1, *tile), float(y))}

    grid = TileGrid.over((160, 64), tile, 0.25)
    rows: dict[int, int] = {}
    for block in blend(grid, tiles(grid)):
        rows[block.top] = rows.get(block.top, 0) + block.values["a"].shape[2]
        alive[0] += block.values["a"].shape[1] * block.values["a"].shape[2]
    assert set(rows.values()) == {64} and alive[0] == 160 * 64


@pytest.mark.parametrize("stored", [(60, 90), (30, 45), (20, 30), (61, 91)])
@pytest.mark.parametrize("m", [RGB, replace(RGB, interpolation="nearest"), HEIGHT, BANDS])
def test_a_window_is_what_the_full_image_gives(
    tmp_path: Path, m: Modality, stored: tuple[int, int]
) -> None:
    shape = stored if m.num_channels == 1 else (*stored, m.num_channels)
    image = random(*shape, top=256 if m.max_value == 255 else 60000)
    if m.storage == "float":
        image = image.astype(np.float32) / 60000
    np.save(tmp_path / "a.npy", image)
    full = np.zeros((61, 91, 3), np.uint8)
    mods = [m, replace(RGB, name="full")]
    with Scene({m.name: tmp_path / "a.npy", "full": full}, mods) as scene:
        assert scene.size == (61, 91)
        pixels = Image.fromarray(image) if m is RGB else image
        for box in ((0, 0, 61, 91), (7, 13, 32, 32), (29, 59, 32, 32), (60, 90, 1, 1)):
            view = View((61, 91), *box)
            for out in (box[2:], (5, 9)):
                window, mask = scene.read(m, view, out)
                assert mask is None and torch.equal(window, cut(pixels, m, view, out))


@pytest.mark.parametrize("mode", ["pad", "whole", "crop"])
def test_one_tile_is_what_predict_gives(mode: Any) -> None:
    depth_head = HeadSpec("height", HEIGHT, 1, replace(DENSE, main_tasks=("rgb", "depth")), "m")
    heads = (HeadSpec("semseg", LABELS, 5, DENSE), depth_head)
    built = model(*heads, inputs=(RGB, DEPTH), resize_mode=mode)
    images = {"rgb": random(32, 32, 3), "depth": random(32, 32, top=9000)}
    plain, tiled = built.predict(images), built.predict(images, tile=True)
    assert isinstance(plain["semseg"], LabelPrediction)
    assert isinstance(tiled["semseg"], LabelPrediction)
    assert torch.equal(plain["semseg"].logits, tiled["semseg"].logits)
    assert np.array_equal(plain["semseg"].ids, tiled["semseg"].ids)
    assert np.array_equal(plain["height"].values, tiled["height"].values)  # type: ignore[union-attr]


def test_statistics_are_those_of_the_image() -> None:
    """A step in depth: statistics per tile would make both sides equal."""
    depth = np.full((32, 96), 1000, np.uint16)
    depth[:, 48:] = 5000
    depth += random(32, 96, top=20)
    target = replace(HEIGHT, name="copy")
    built = model(
        HeadSpec("copy", target, 1, replace(DENSE, main_tasks=("depth",))), inputs=(DEPTH,)
    )
    seen = []
    forward = built.apply_heads

    def spy(x: Any, all_layers: bool = False) -> Any:
        seen.append(x["depth"])
        return forward(x, all_layers)

    built.apply_heads = spy  # type: ignore[method-assign]
    built.predict({"depth": depth}, tile=32)
    x = torch.cat(seen)
    assert x[0].mean() < -0.8 and x[len(x) // 2 :].amax() > 0.8
    from multimae.images.preprocess import to_model_input

    whole = to_model_input(torch.from_numpy(depth)[None, None], DEPTH)
    assert torch.allclose(x[0], whole[0, :, :, :32], atol=1e-5)


@pytest.mark.parametrize("mode", ["pad", "whole"])
@pytest.mark.parametrize("size", [(20, 50), (90, 17), (9, 9), (75, 101)])
def test_any_size_and_aspect(size: tuple[int, int], mode: Any) -> None:
    quarter = replace(default_table()["semseg"], num_classes=6)
    built = model(inputs=(RGB, quarter), resize_mode=mode, padding_class=True)
    ids = random(-(-size[0] // 4), -(-size[1] // 4)) % 6
    made = built.predict({"rgb": random(*size, 3), "semseg": ids}, tile=32)["semseg"]
    assert isinstance(made, LabelPrediction)
    assert made.ids.shape == size and made.logits.shape == (5, *size)
    assert np.array_equal(made.logits.argmax(0).numpy(), made.ids)


def test_what_cannot_be_tiled_is_refused() -> None:
    linear = HeadSpec("cls", LABELS, 5, LinearOptions())
    image = random(40, 40, 3)
    with pytest.raises(ValueError, match="cls"):
        model(linear, resize_mode="crop").predict(image, tile=True)
    with pytest.raises(ValueError, match="32 24"):
        model().predict(image, tile=(32, 25))
    with pytest.raises(ValueError, match="0.95"):
        model().predict(image, tile=True, overlap=0.95)
    with pytest.raises(ValueError, match="thermal"):
        model().predict({"thermal": image}, tile=True)
    built = model(inputs=(RGB, DEPTH))
    with pytest.raises(ImageError, match="aspect"):
        built.predict({"rgb": image, "depth": random(40, 50, top=9)}, tile=True)
    assert isinstance(built.predict({"rgb": image}, tile=True)["semseg"], LabelPrediction)


def test_values_of_tiles_are_in_their_unit() -> None:
    built = model(HeadSpec("depth", HEIGHT, 1, DENSE, "m", 0.001), resize_mode="crop")
    made = built.predict(random(50, 70, 3), tile=32)["depth"]
    assert isinstance(made, ValuePrediction)
    expected = (made.normalized[0] * 0.2 + 0.1) * 65.535
    assert made.values.shape == (50, 70) and np.allclose(made.values, expected, rtol=1e-5)


def test_mirrored_images_give_mirrored_predictions() -> None:
    """Of normals, the x component changes its sign: 1 - x on the scale of the files."""
    normals = Modality("normal", interpolation="nearest", loss="l1", plot="normals", mean=(0.4,))
    built = model(
        HeadSpec("semseg", LABELS, 5, DENSE), HeadSpec("normal", normals, 3, DENSE),
        resize_mode="crop",
    )  # fmt: skip
    image = random(50, 70, 3)
    for options in ({"tile": 32}, {}):
        plain, flipped = (
            built.predict(np.ascontiguousarray(x), tta="flip,1,1.5", **options)  # type: ignore[arg-type]
            for x in ((image, image[:, ::-1]) if options else (image[:50, :50], image[:50, 49::-1]))
        )
        values, other = plain["normal"].values, flipped["normal"].values[:, ::-1]  # type: ignore[union-attr]
        assert np.allclose(values[..., 1:], other[..., 1:], atol=1e-4)
        assert np.allclose(values[..., 0], 1 - other[..., 0], atol=1e-4)
        assert not np.allclose(values[..., 0], other[..., 0], atol=1e-2)
        same = plain["semseg"].ids == flipped["semseg"].ids[:, ::-1]  # type: ignore[union-attr]
        assert same.mean() > 0.99
        once = built.predict(image[:50, : 70 if options else 50], **options)["normal"]  # type: ignore[arg-type]
        assert not np.allclose(values, once.values, atol=1e-3)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text,flip,scales",
    [("", False, (1.0,)), ("flip", True, (1.0,)), ("scales", False, (0.75, 1.0, 1.25)),
     ("flip, scales", True, (0.75, 1.0, 1.25)), ("0.5,1,flip", True, (0.5, 1.0)),
     ("scales=2", False, (2.0,))],
)  # fmt: skip
def test_augmentations(text: str, flip: bool, scales: tuple[float, ...]) -> None:
    assert Augmentation.parse(text) == Augmentation(flip, scales)


@pytest.mark.parametrize("text", ["flop", "0", "nan", "flip=1", "9"])
def test_unknown_augmentations(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        model().predict(random(32, 32, 3), tta=text)
