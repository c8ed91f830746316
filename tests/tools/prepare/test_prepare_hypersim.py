"""Preparation of Hypersim from its HDF5 files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

from tests.support.image_folders import save  # noqa: E402
from tests.support.prepared import digests, files_of, pixels, read_all, refusal, stamps, train_set  # noqa: E402
from tools import prepare_hypersim  # noqa: E402
from tools.prepare.hypersim import planar_depth  # noqa: E402

H, W = 48, 64
FRAMES = [
    ("ai_001_001", "cam_00", 0, "train"),
    ("ai_001_001", "cam_00", 12, "train"),
    ("ai_001_001", "cam_01", 0, "train"),
    ("ai_003_010", "cam_00", 7, "val"),
    ("ai_055_002", "cam_02", 99, "test"),
]


def frame_files(source: Path, scene: str, camera: str, number: int) -> dict[str, Path]:
    images = source / scene / "images"
    stem = f"frame.{number:04d}"
    return {
        "rgb": images / f"scene_{camera}_final_preview" / f"{stem}.tonemap.jpg",
        "depth": images / f"scene_{camera}_geometry_hdf5" / f"{stem}.depth_meters.hdf5",
        "semseg": images / f"scene_{camera}_geometry_hdf5" / f"{stem}.semantic.hdf5",
    }


def write_hdf5(path: Path, array: np.ndarray, name: str = "dataset") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=array, compression="gzip")


def distance() -> np.ndarray:
    """Metres along the ray: a wall at 2 m, and what is not measured."""
    wall = np.full((H, W), 2.0)
    wall[:8] = 5.0
    ys, xs = np.mgrid[:H, :W]
    focal = 886.81 * W / 1024
    metres = wall * np.sqrt(
        1 + ((xs - (W - 1) / 2) / focal) ** 2 + ((ys - (H - 1) / 2) / focal) ** 2
    )
    metres[20, :4] = math.nan, math.inf, 0, 400
    return metres


def labels() -> np.ndarray:
    ids = np.random.default_rng(0).integers(1, 41, (H, W)).astype(np.int16)
    ids[0, :4] = -1, 1, 40, 22
    return ids


def write_frame(source: Path, scene: str, camera: str, number: int) -> None:
    files = frame_files(source, scene, camera, number)
    rng = np.random.default_rng(number)
    save(files["rgb"], rng.integers(0, 256, (H, W, 3), np.uint8))
    write_hdf5(files["depth"], distance().astype(np.float16))
    write_hdf5(files["semseg"], labels())


def write_split(path: Path, more: str = "") -> Path:
    lines = [
        "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name"
    ]
    lines += [f"{scene},{camera},{number},True,,{split}" for scene, camera, number, split in FRAMES]
    lines += ["ai_004_009,cam_01,3,False,invalid camera trajectory,"]
    path.write_text("\n".join(lines) + "\n" + more)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for scene, camera, number, _ in FRAMES:
        write_frame(tmp_path / "hypersim", scene, camera, number)
    write_split(tmp_path / "split.csv")
    return tmp_path / "hypersim"


def arguments(source: Path, *more: str) -> list[str]:
    return [
        *("--source", str(source), "--out", str(source.parent / "out")),
        *("--split_csv", str(source.parent / "split.csv"), *more),
    ]


def test_depth_at_the_published_size() -> None:
    """Known points of 1024 x 768: the axis, the middle of an edge, a corner."""
    depth = planar_depth(np.full((768, 1024), 3.0, np.float32))
    x, y, f = 511.5, 383.5, 886.81
    assert depth[383, 511] == pytest.approx(3, rel=1e-6)
    assert depth[383, 0] == pytest.approx(3 * f / math.sqrt(f * f + x * x + 0.25), rel=1e-9)
    assert depth[0, 511] == pytest.approx(3 * f / math.sqrt(f * f + 0.25 + y * y), rel=1e-9)
    for corner in (depth[0, 0], depth[0, -1], depth[-1, 0], depth[-1, -1]):
        assert corner == pytest.approx(3 * f / math.sqrt(f * f + x * x + y * y), rel=1e-9)


def test_values_units_and_splits(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "out"
    assert prepare_hypersim.main(arguments(source, "--workers", "2")) == 0
    line = f"hypersim: train 3 written; val 1 written; test 1 written -> {out}\n"
    assert capsys.readouterr().out == line
    assert len(files_of(out)) == 3 + 4 * len(FRAMES) and not (out / ".tmp").exists()
    for scene, camera, number, split in FRAMES:
        key = f"{scene}/{camera}_frame_{number:04d}"
        rgb = out / split / "rgb" / f"{key}.jpg"
        assert rgb.samefile(frame_files(source, scene, camera, number)["rgb"])
        depth, semseg, valid = (
            pixels(out / split / m / f"{key}.png") for m in ("depth", "semseg", "mask_valid")
        )
        assert depth.dtype == np.uint16 and depth.shape == (H, W)
        # float16 is exact to 1/2048; the ray's length has been taken out again: flat walls.
        assert np.abs(depth[30:].astype(int) - 2000).max() <= 2
        assert np.abs(depth[:8].astype(int) - 5000).max() <= 3
        assert (depth[20, :4] == 0).all() and (valid[20, :4] == 0).all()
        assert (valid == np.where(depth > 0, 255, 0)).all() and (valid == 0).sum() == 4
        np.testing.assert_array_equal(semseg, np.where(labels() == -1, 0, labels()))
        assert semseg[0, :4].tolist() == [0, 1, 40, 22]


def test_a_second_run_keeps_files_without_the_download(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = source.parent / "out"
    assert prepare_hypersim.main(arguments(source, "--link", "copy")) == 0
    first, times = digests(out), stamps(out)
    lost = out / "val/depth/ai_003_010/cam_00_frame_0007.png"
    lost.unlink()
    frame_files(source, "ai_001_001", "cam_00", 0)["depth"].unlink()  # done, hence not needed
    capsys.readouterr()
    assert prepare_hypersim.main(arguments(source)) == 0
    assert "train 3 already present; val 1 written" in capsys.readouterr().out
    assert digests(out) == first
    changed = {name for name, time in stamps(out).items() if time != times[name]}
    assert all(name.startswith("val/") for name in changed)


def test_missing_files_are_listed_or_skipped(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = frame_files(source, "ai_001_001", "cam_01", 0)
    files["semseg"].unlink()
    text = refusal(prepare_hypersim, arguments(source), capsys)
    assert "1 of 5 frames" in text and str(files["semseg"]) in text
    assert not (source.parent / "out").exists()
    assert prepare_hypersim.main(arguments(source, "--skip_incomplete")) == 0
    assert "train 1 incomplete, skipped, 2 written" in capsys.readouterr().out


def test_frames_without_labels_or_depth_are_skipped(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hdf5(
        frame_files(source, "ai_001_001", "cam_00", 0)["semseg"], np.full((H, W), -1, np.int16)
    )
    write_hdf5(
        frame_files(source, "ai_001_001", "cam_01", 0)["depth"], np.full((H, W), np.nan, np.float16)
    )
    assert prepare_hypersim.main(arguments(source)) == 0
    assert "train 2 without labels or depth, skipped, 1 written" in capsys.readouterr().out
    assert len(files_of(source.parent / "out/train/rgb")) == 1


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("semseg", np.full((H, W), 41, np.int16), "class id 41 is outside -1..40"),
        ("semseg", np.full((H, W), -2, np.int16), "class id -2"),
        ("semseg", np.ones((H, W), np.float16), "not a map (H, W) of class ids"),
        ("semseg", np.ones((W, H), np.int16), "differ in size"),
        ("depth", np.ones((H, W, 3), np.float16), "not a map (H, W) of metres"),
    ],
)
def test_bad_arrays(source, capsys, kind, array, message) -> None:
    path = frame_files(source, "ai_003_010", "cam_00", 7)[kind]
    write_hdf5(path, array)
    assert message in refusal(prepare_hypersim, arguments(source), capsys)
    assert not list((source.parent / "out/val").rglob("*.png"))
    assert len(list((source.parent / "out/train").rglob("*.png"))) == 9


def test_bad_files(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = frame_files(source, "ai_003_010", "cam_00", 7)["depth"]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as HDF5" in refusal(prepare_hypersim, arguments(source), capsys)
    write_hdf5(path, distance(), name="depth")
    assert "no dataset in it, only: depth" in refusal(prepare_hypersim, arguments(source), capsys)
    split = source.parent / "split.csv"
    for more, message in (
        ("../../x,cam_00,1,True,,train\n", "line 8"),
        ("ai_001_001,cam_00,1,True,,training\n", "line 8"),
        ("ai_001_001,cam_00,0,True,,val\n", "twice"),
    ):
        write_split(split, more)
        assert message in refusal(prepare_hypersim, arguments(source), capsys)
    split.write_text("id,train\n1,2\n")
    assert "expected the columns scene_name" in refusal(prepare_hypersim, arguments(source), capsys)
    split.unlink()
    assert "cannot be read" in refusal(prepare_hypersim, arguments(source), capsys)


@pytest.mark.parametrize("inputs", ["rgb", "depth", "rgb-depth"])
def test_the_published_configurations_read_it(source: Path, inputs: str) -> None:
    assert prepare_hypersim.main(arguments(source)) == 0
    config = f"semseg/hypersim/ft_hypersim_25e_multimae-b_{inputs}.yaml"
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        dataset = train_set(config, source.parent / "out", split)
        assert len(dataset) == count
        read_all(dataset)
