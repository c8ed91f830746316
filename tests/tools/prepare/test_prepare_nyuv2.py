"""Preparation of NYUv2 from its MATLAB files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")
pytest.importorskip("scipy")
from scipy.io import savemat  # noqa: E402

from tests.support.prepared import digests, files_of, pixels, read_all, refusal, stamps, train_set  # noqa: E402
from tools import prepare_nyuv2  # noqa: E402

N, H, W = 5, 24, 32
SPLITS = {"trainNdxs": [[4], [1], [2]], "testNdxs": [[3]]}
MODALITIES = ("depth", "mask_valid", "rgb", "semseg")


def scene(height: int = H, width: int = W) -> dict[str, np.ndarray]:
    """Arrays as MATLAB has them: H x W (x 3) x N."""
    rng = np.random.default_rng(0)
    depths = rng.uniform(0.7, 9.9, (height, width, N)).astype(np.float32)
    raw = np.where(rng.random(depths.shape) < 0.2, 0, depths).astype(np.float32)
    raw[0, :, :] = depths[0, :, :]
    labels = rng.integers(0, 895, depths.shape).astype(np.uint16)
    labels[0, 0, :] = 894
    labels[0, 1, :] = 0
    images = rng.integers(0, 256, (height, width, 3, N), dtype=np.uint8)
    return {"images": images, "depths": depths, "rawDepths": raw, "labels": labels}


def mapping() -> np.ndarray:
    """Class of 1..40 by label; 1 x 894, as published."""
    return (np.arange(894) % 40 + 1).astype(np.uint8)[None]


def write_labelled(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """MATLAB 7.3: HDF5 with the axes in reverse order."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, array in arrays.items():
            stored = array.transpose()
            file.create_dataset(key, data=stored, chunks=(1, *stored.shape[1:]), compression=3)
        file.create_group("#refs#")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def write_source(folder: Path, **changed: np.ndarray) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    arrays = scene() | changed
    write_labelled(folder / "nyu_depth_v2_labeled.mat", arrays)
    savemat(folder / "splits.mat", {k: np.array(v, np.float64) for k, v in SPLITS.items()})
    savemat(folder / "classMapping40.mat", {"mapClass": mapping(), "className": ["wall", "floor"]})
    return arrays


def arguments(source: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--source", str(source / "nyu_depth_v2_labeled.mat"), "--out", str(out)),
        *("--class_mapping", str(source / "classMapping40.mat"), *more),
    ]


def test_values_units_orientation_and_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = write_source(tmp_path / "mat")
    assert prepare_nyuv2.main(arguments(tmp_path / "mat", tmp_path / "out")) == 0
    line = "nyuv2: train 3 written; test 1 written -> " + str(tmp_path / "out")
    assert capsys.readouterr().out == f"{line}; 1 images are in no split\n"
    assert files_of(tmp_path / "out") == sorted(
        ["prepared.json", "train/classes.json", "test/classes.json"]
        + [f"{s}/{m}/all/{i:04d}.png" for m in MODALITIES for s, i in places()]
    )
    for split, number in places():
        i = number - 1
        rgb, depth, semseg, valid = (
            pixels(tmp_path / f"out/{split}/{m}/all/{number:04d}.png")
            for m in ("rgb", "depth", "semseg", "mask_valid")
        )
        np.testing.assert_array_equal(rgb, arrays["images"][..., i])
        np.testing.assert_array_equal(depth, np.rint(arrays["depths"][..., i].astype(float) * 1e3))
        np.testing.assert_array_equal(valid, (arrays["rawDepths"][..., i] > 0) * 255)
        labels = arrays["labels"][..., i].astype(int)
        np.testing.assert_array_equal(semseg, np.where(labels == 0, 0, (labels - 1) % 40 + 1))
        assert depth.dtype == np.uint16 and semseg[0, 0] == (894 - 1) % 40 + 1 and semseg[0, 1] == 0
    names = json.loads((tmp_path / "out/train/classes.json").read_text())["classes"]
    assert names[:2] == ["void", "wall"] and len(names) == 41


def places() -> list[tuple[str, int]]:
    return [("train", 1), ("train", 2), ("train", 4), ("test", 3)]


def test_depth_alone_needs_no_mapping_and_labels_can_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "mat")
    given = arguments(tmp_path / "mat", tmp_path / "out")
    assert prepare_nyuv2.main(given[:4]) == 0
    assert "no label maps" in capsys.readouterr().out
    assert not (tmp_path / "out/train/semseg").exists()
    assert prepare_nyuv2.main(given) == 0
    assert len(list((tmp_path / "out/train/semseg/all").iterdir())) == 3


def test_the_border_is_cut_off_on_request_and_settings_do_not_mix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = write_source(tmp_path / "mat", **scene(480, 640))
    out = tmp_path / "out"
    assert prepare_nyuv2.main(arguments(tmp_path / "mat", out, "--crop_border")) == 0
    rgb = pixels(out / "train/rgb/all/0001.png")
    np.testing.assert_array_equal(rgb, arrays["images"][45:471, 41:601, :, 0])
    assert pixels(out / "train/depth/all/0001.png").shape == (426, 560)
    assert "other settings" in refusal(prepare_nyuv2, arguments(tmp_path / "mat", out), capsys)


def test_a_second_run_keeps_files_and_makes_missing_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "mat")
    out = tmp_path / "out"
    given = arguments(tmp_path / "mat", out)
    assert prepare_nyuv2.main([*given, "--workers", "2"]) == 0
    first, times = digests(out), stamps(out)
    (out / "train/depth/all/0002.png").unlink()
    (out / ".tmp").mkdir()
    (out / ".tmp/.multimae-staging").touch()
    (out / ".tmp/1-depth-0002.png").write_bytes(b"half")
    capsys.readouterr()
    assert prepare_nyuv2.main(given) == 0
    assert "train 2 already present, 1 written; test 1 already present" in capsys.readouterr().out
    assert digests(out) == first and not (out / ".tmp").exists()
    kept = {name for name, time_ in stamps(out).items() if time_ == times[name]}
    assert kept == {name for name in times if "train" not in name or "0002" not in name}
    time.sleep(0.01)
    assert prepare_nyuv2.main([*given, "--overwrite"]) == 0
    assert all(time_ != times[name] for name, time_ in stamps(out).items())
    assert digests(out) == first


def test_a_failure_leaves_no_half_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "mat")
    given = arguments(tmp_path / "mat", tmp_path / "out")
    original, calls = Path.replace, []

    def full_disk(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        return original(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full_disk)
        assert prepare_nyuv2.main(given) == 1
    assert "No space left" in capsys.readouterr().err
    assert len(files_of(tmp_path / "out")) == 6  # what was complete, nothing else
    assert prepare_nyuv2.main(given) == 0
    assert len(files_of(tmp_path / "out")) == 3 + 4 * 4


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("labels", lambda a: np.where(a == 894, 895, a).astype(np.uint16), "label 895"),
        ("depths", lambda a: a * 1000, "metres"),
        ("depths", lambda a: a[..., :-1], "expected images (N, 3, W, H)"),
        ("depths", lambda a: a.transpose(1, 0, 2), "expected images (N, 3, W, H)"),
        ("images", lambda a: a.transpose(0, 1, 3, 2), "expected images (N, 3, W, H)"),
        ("images", lambda a: (a / 255).astype(np.float32), "images is float32"),
        ("images", lambda a: a.astype(np.uint16), "images is uint16"),
    ],
)
def test_bad_arrays(tmp_path, capsys, key, change, message) -> None:
    write_source(tmp_path / "mat", **{key: change(scene()[key])})
    given = arguments(tmp_path / "mat", tmp_path / "out")
    assert message in refusal(prepare_nyuv2, given, capsys)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_axes_that_are_not_matlabs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = write_source(tmp_path / "mat")
    turned = {key: np.swapaxes(array, 0, 1) for key, array in arrays.items()}
    write_labelled(tmp_path / "mat/nyu_depth_v2_labeled.mat", turned)
    message = refusal(prepare_nyuv2, arguments(tmp_path / "mat", tmp_path / "out"), capsys)
    assert "W >= H" in message and f"(5, 3, {H}, {W})" in message


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mat, out = tmp_path / "mat", tmp_path / "out"
    arrays = write_source(mat)
    given = arguments(mat, out)
    assert "does not exist" in refusal(prepare_nyuv2, arguments(tmp_path / "no", out), capsys)
    assert "border" in refusal(prepare_nyuv2, [*given, "--crop_border"], capsys)
    swapped = [*given, "--splits", str(mat / "nyu_depth_v2_labeled.mat")]
    assert "MATLAB file of version 5" in refusal(prepare_nyuv2, swapped, capsys)
    (mat / "page.mat").write_bytes(bytes(600))
    page = [*given, "--splits", str(mat / "page.mat")]
    assert "MATLAB file of version 5" in refusal(prepare_nyuv2, page, capsys)
    wrong = [*given, "--splits", str(mat / "classMapping40.mat")]
    assert "'trainNdxs'" in refusal(prepare_nyuv2, wrong, capsys)
    for numbers, message in (
        ([[6]], "image 6 does not exist"),
        ([[0]], "image 0"),
        ([[1]], "twice"),
    ):
        savemat(mat / "bad.mat", {**SPLITS, "testNdxs": numbers})
        bad = [*given, "--splits", str(mat / "bad.mat")]
        assert message in refusal(prepare_nyuv2, bad, capsys)
    savemat(mat / "classMapping40.mat", {"mapClass": mapping() + 1})
    assert "expected 1..40" in refusal(prepare_nyuv2, given, capsys)
    del arrays["rawDepths"]
    write_labelled(mat / "nyu_depth_v2_labeled.mat", arrays)
    assert "no rawDepths" in refusal(prepare_nyuv2, given, capsys)
    (mat / "nyu_depth_v2_labeled.mat").write_bytes(b"<html>404</html>")
    assert "cannot be read as HDF5" in refusal(prepare_nyuv2, given, capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    "config",
    ["semseg/nyu/ft_nyu_200e_multimae-b_rgb-depth.yaml", "depth/ft_nyu_2000e_multimae-b.yaml"],
)
def test_the_published_configurations_read_it(tmp_path: Path, config: str) -> None:
    write_source(tmp_path / "mat")
    assert prepare_nyuv2.main(arguments(tmp_path / "mat", tmp_path / "out")) == 0
    for split, count in (("train", 3), ("test", 1)):
        dataset = train_set(config, tmp_path / "out", split)
        assert len(dataset) == count
        read_all(dataset)
