"""multimae predict --tile: GeoTIFF in and out, seams, memory, scores, test-time augmentation."""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.env import get_gdal_config

from multimae import MultiMAE, MultiViT, save_model
from multimae.cli import main
from multimae.images.pixels import ImageError
from multimae.inference.predict import forward_of
from multimae.inference.tiling.tiles import TileOptions, Tiler
from multimae.inference.tiling.windows import Scene
from multimae.specs.heads import HeadSpec
from tests.multimae.inference.test_tiles import BANDS, DENSE, HEIGHT, LABELS, model, random
from tests.support.image_folders import save

QUICK = ("--num_workers", "0", "--device", "cpu", "--precision", "fp32")
TRANSFORM = rasterio.transform.from_origin(500000, 5200000, 10, 10)
SCENE = HeadSpec("semseg", LABELS, 5, replace(DENSE, main_tasks=("bands",)), zero_is_void=False)
DEPTH_HEAD = HeadSpec("depth", HEIGHT, 1, replace(DENSE, main_tasks=("bands",)), "m", 0.001)


def predict(model: str, source: object, out: Path, *more: object) -> int:
    return main(["predict", model, str(source), "--out", str(out), *QUICK, *map(str, more)])


def saved(path: Path, built: MultiViT) -> str:
    save_model(built.state_dict(), built.spec, path)
    return str(path)


def write_scene(
    path: Path, height: int, width: int, *, empty: tuple[slice, slice] | None = None, **more: Any
) -> Path:
    """A float32 GeoTIFF of 4 bands: smooth, with a texture."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    bands = [0.4 + 0.3 * np.sin(x / (17 + 5 * b) + y / (23 - 3 * b)) for b in range(4)]
    values = np.stack(bands) + 0.02 * np.random.default_rng(0).random((4, height, width))
    values = values.astype(np.float32)
    if empty:
        values[:, empty[0], empty[1]] = -9999
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=4, dtype="float32",
        crs="EPSG:32632", transform=TRANSFORM, nodata=-9999, tiled=True, blockxsize=64,
        blockysize=64, **more,
    ) as file:  # fmt: skip
        file.write(values)
    return path


@pytest.fixture(scope="module")
def scene_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    built = model(SCENE, DEPTH_HEAD, inputs=(BANDS,))
    return saved(tmp_path_factory.mktemp("model") / "m.safetensors", built)


def test_a_geotiff_becomes_geotiffs_on_the_same_ground(tmp_path: Path, scene_model: str) -> None:
    """600 x 900, 4 bands: coordinates, palette and empty pixels are kept, and no seam is seen."""
    empty = (slice(100, 180), slice(200, 333))
    scene, out = write_scene(tmp_path / "in/scene.tif", 600, 900, empty=empty), tmp_path / "out"
    assert predict(
        scene_model, scene, out, "--tile", 32, "--format", "tiff", "--confidence", "--overlay"
    ) == 0  # fmt: skip
    inside = np.zeros((600, 900), bool)
    inside[empty] = True
    with rasterio.open(out / "semseg/scene.tiff") as file:
        assert (file.crs, file.transform) == (rasterio.crs.CRS.from_epsg(32632), TRANSFORM)
        assert file.nodata == 255 and file.profile["tiled"] and file.profile["compress"]
        assert file.colormap(1)[0][:3] != file.colormap(1)[1][:3]
        ids = file.read(1)
        assert np.array_equal(ids == 255, inside) and set(np.unique(ids)) <= {0, 1, 2, 3, 4, 255}
    with rasterio.open(out / "depth/scene.tiff") as file:
        assert file.transform == TRANSFORM and np.isnan(file.nodata)
        depth = file.read(1)
        assert file.dtypes == ("float32",) and np.array_equal(np.isnan(depth), inside)
    with rasterio.open(out / "semseg_confidence/scene.tiff") as file:
        confidence = file.read(1)
    assert (confidence[inside] == 0).all() and (confidence[~inside] >= 255 // 5).all()
    assert Image.open(out / "semseg_overlay/scene.jpg").width >= 900
    made = MultiMAE.from_pretrained(scene_model).predict({"bands": scene}, tile=32)
    assert np.array_equal(np.where(inside, -1, ids.astype(int)), made["semseg"].ids)  # type: ignore[union-attr]
    assert np.allclose(depth, made["depth"].values, equal_nan=True)  # type: ignore[union-attr]


def test_no_seam(tmp_path: Path, scene_model: str) -> None:
    """Differences across the borders of tiles are not larger than those inside."""
    scene = write_scene(tmp_path / "scene.tif", 600, 900)
    built = MultiMAE.from_pretrained(scene_model)
    values = {}
    for overlap in (0.0, 0.25):
        made = built.predict({"bands": scene}, tile=32, overlap=overlap)
        values[overlap] = made["depth"].normalized[0].numpy()  # type: ignore[union-attr]
    ratios = {}
    for overlap, value in values.items():
        grid = Tiler(
            forward_of(built), built.spec, built.spec.inputs, TileOptions(None, overlap)
        ).grid((600, 900))  # fmt: skip
        ratio = []
        for axis, line in ((0, grid.rows), (1, grid.columns)):
            steps = np.abs(np.diff(value, axis=axis)).max(axis=1 - axis)
            starts = np.array(line.starts[1:])
            edges = np.union1d(starts, np.array(line.starts[:-1]) + line.tile) - 1
            # The head's own patches of 8 make steps, too: compare with other patch borders.
            ratio.append(steps[edges].max() / np.delete(steps, edges).max())
        ratios[overlap] = max(ratio)
    assert ratios[0.25] <= 1 < ratios[0.0]


def tensor_bytes() -> int:
    tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
    return sum({x.data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def peaks(height: int, tmp_path: Path, tiler: Tiler) -> tuple[int, int]:
    """Most bytes of tensors and of arrays."""
    scene = write_scene(tmp_path / f"{height}.tif", height, 96)
    rows, tensors = 0, 0
    with Scene({"bands": scene}, [BANDS]) as opened:
        gc.collect()
        before = tensor_bytes()
        tracemalloc.start()
        for i, band in enumerate(tiler.bands(opened)):
            rows += band["depth"].view.height
            tensors = max(tensors, tensor_bytes() - before) if i % 3 == 1 else tensors
        _, arrays = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert rows == height
    return tensors, arrays


def test_memory_does_not_grow_with_the_height(tmp_path: Path, scene_model: str) -> None:
    built = MultiMAE.from_pretrained(scene_model)
    options = TileOptions((32, 32))
    tiler = Tiler(forward_of(built), built.spec, (BANDS,), options, batch_size=4)
    peaks(96, tmp_path, tiler)
    low, high = peaks(96, tmp_path, tiler), peaks(480, tmp_path, tiler)
    assert low[0] > 0
    for few, many in zip(low, high, strict=True):
        assert many < 1.3 * few + 2**16


def test_pictures_and_formats_without_coordinates(tmp_path: Path) -> None:
    """PNG, TIFF and npy written row by row hold what predict() returns."""
    heads = (
        HeadSpec("semseg", LABELS, 5, DENSE, zero_is_void=True),
        HeadSpec("depth", HEIGHT, 1, DENSE, "m", 0.001),
    )
    path = saved(tmp_path / "m.safetensors", model(*heads))
    for name in ("a", "b"):
        save(tmp_path / f"in/{name}.png", random(70, 101, 3, seed=ord(name)))
    (tmp_path / "in/c.png").write_bytes(b"x")
    made = MultiMAE.from_pretrained(path).predict(tmp_path / "in/a.png", tile=32)
    for kind in ("png", "tiff", "npy"):
        out = tmp_path / kind
        assert predict(path, tmp_path / "in", out, "--tile", "--format", kind, "--overlay") == 1
        with Image.open(out / "semseg/a.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), made["semseg"].ids + 1)  # type: ignore[union-attr]
        assert sorted(p.stem for p in (out / "semseg").iterdir()) == ["a", "b"]
        assert not list(out.rglob("*.tmp"))
        depth = made["depth"].values  # type: ignore[union-attr]
        if kind == "png":
            mm = np.asarray(Image.open(out / "depth/a.png"))
            assert np.array_equal(mm, np.clip(np.rint(depth * 1000), 1, 65535))
        elif kind == "npy":
            assert np.array_equal(np.load(out / "depth/a.npy"), depth)
        else:
            assert np.array_equal(np.asarray(Image.open(out / "depth/a.tiff")), depth)
    before = {p: p.read_bytes() for p in (tmp_path / "png").rglob("*.png")}
    (tmp_path / "png/semseg/a.png").unlink()
    assert predict(path, tmp_path / "in", tmp_path / "png", "--tile", "--overlay") == 1
    assert {p: p.read_bytes() for p in (tmp_path / "png").rglob("*.png")} == before
    assert predict(path, tmp_path / "in", tmp_path / "png", "--tile", 40, "--overlay") == 2


def test_a_geotiff_keeps_its_coordinates_without_tiles(tmp_path: Path, scene_model: str) -> None:
    scene, out = write_scene(tmp_path / "in/scene.tif", 48, 64), tmp_path / "out"
    assert predict(scene_model, scene, out, "--format", "tiff") == 0
    for head in ("semseg", "depth"):
        with rasterio.open(out / head / "scene.tiff") as file:
            assert file.transform == TRANSFORM and file.crs.to_epsg() == 32632
    assert predict(scene_model, scene, out, "--format", "tiff") == 0


def test_scores_by_tiles_are_those_of_one_tile(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", model(HeadSpec("semseg", LABELS, 5, DENSE,
                 zero_is_void=False)))  # fmt: skip
    root = tmp_path / "root"
    for i, size in enumerate([(32, 32), (50, 90)]):
        save(root / f"rgb/{i}.png", random(*size, 3, seed=i))
        save(root / f"labels/{i}.png", random(*size, seed=9 + i) % 5)
    for out, more in (("tiles", ("--tile",)), ("plain", ())):
        assert predict(
            path, root, tmp_path / out, "--only", "0", "--truth", root / "labels", *more
        ) == 0  # fmt: skip
    scores = [json.loads((tmp_path / o / "metrics.json").read_text()) for o in ("tiles", "plain")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
    assert predict(path, root, tmp_path / "own", "--tile") == 0
    assert predict(
        path, root, tmp_path / "all", "--tile", "--truth", tmp_path / "own/semseg"
    ) == 0  # fmt: skip
    assert json.loads((tmp_path / "all/metrics.json").read_text())["pixel_accuracy"] == 1


def write_band(path: Path, shape: tuple[int, int], pixel: float, east: float = 0) -> Path:
    transform = rasterio.transform.from_origin(500000 + east, 5200000, pixel, pixel)
    with rasterio.open(
        path, "w", driver="GTiff", height=shape[0], width=shape[1], count=1, dtype="uint16",
        crs="EPSG:32632", transform=transform,
    ) as file:  # fmt: skip
        file.write(random(*shape, top=60000), 1)
    return path


def test_geotiffs_must_lie_on_the_same_ground(tmp_path: Path) -> None:
    coarse = replace(HEIGHT, name="coarse")
    fine = write_band(tmp_path / "fine.tif", (40, 60), 10)
    for name, east in (("on", 0.0), ("rounded", 9.0), ("beside", 300.0)):
        other = write_band(tmp_path / f"{name}.tif", (20, 30), 20, east)
        images: dict[str, Any] = {"height": fine, "coarse": other}
        if east < 20:
            with Scene(images, [HEIGHT, coarse]) as scene:
                assert scene.size == (40, 60) and scene.georeference is not None
                assert scene.georeference.transform.a == 10
            continue
        with pytest.raises(ImageError, match=rf"{name}\.tif.*coarse.*500300"):
            Scene(images, [HEIGHT, coarse])


def test_rasterio_is_named_if_it_is_missing(
    tmp_path: Path, scene_model: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    scene = write_scene(tmp_path / "in/scene.tif", 40, 40)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert predict(scene_model, scene, tmp_path / "out", "--tile") == 2
    assert "multimae[geo]" in capsys.readouterr().err


def test_gdal_keeps_few_blocks(tmp_path: Path) -> None:
    """Its default is 5 % of the machine's memory."""
    small = write_band(tmp_path / "a.tif", (40, 60), 10)
    before = get_gdal_config("GDAL_CACHEMAX")
    with Scene({"height": small}, [HEIGHT]) as scene:
        assert get_gdal_config("GDAL_CACHEMAX") == 2**26
        with scene.cache(32):
            assert get_gdal_config("GDAL_CACHEMAX") == 2**26
    assert get_gdal_config("GDAL_CACHEMAX") == before
